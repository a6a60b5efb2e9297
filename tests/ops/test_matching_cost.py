"""Matching cost: values against numbers worked out by hand and the sum of the single costs in fp64."""

import math

import pytest
import torch

from mmdet_ddetr import ops
from mmdet_ddetr.task_modules import HungarianAssigner, Targets, match_costs
from mmdet_ddetr.task_modules.fused_cost import FusedCost

pytestmark = pytest.mark.skipif(not ops.has_compiled_kernel('matching_cost', 'cpu'), reason='not compiled')
WEIGHTS = dict(cls_weight=2.0, l1_weight=5.0, giou_weight=2.0)


def make(L=2, B=3, Q=7, C=4, T=5, device='cpu', spread=6.0):
    """Arguments of the op; the boxes of some queries and targets are equal, have no area, or lie apart."""
    scores = torch.randn(L, B, Q, C) * spread
    boxes, targets = torch.rand(L, B, Q, 4), torch.rand(T, 4)
    if Q and T and B:
        boxes[:, :, -1, 2:] = 0
        targets[0, 2:] = 0
        boxes[:, :, 0] = targets[-1]
    image, labels = torch.randint(max(B, 1), (T,)), torch.randint(max(C, 1), (T,))
    return [x.to(device) for x in (scores, boxes, image, labels, targets)]


def sum_of_costs(scores, boxes, image, labels, targets, alpha=0.25, gamma=2.0, focal=True):
    """In fp64, each cost on its own; the single costs are compared with mmdet's elsewhere."""
    counts = torch.bincount(image, minlength=scores.shape[1]).tolist()
    truth = Targets(targets.double(), labels, image, counts, torch.ones(len(counts), 4))
    pairs = match_costs.Pairs(match_costs.Predictions(scores.double(), boxes.double()), truth)
    class_cost = match_costs.FocalLossCost(alpha, gamma) if focal else match_costs.ClassificationCost()
    l1, giou = match_costs.BBoxL1Cost('xywh'), match_costs.IoUCost('giou')
    return 2 * class_cost(pairs) + 5 * l1(pairs) + 2 * giou(pairs)


def test_by_hand(device):
    """p = 3/4; halves of the unit square: L1 = 1/2 + 0 + 0 + 0, no overlap, hull = union: GIoU = 0 + 1 - 1."""
    scores = torch.tensor([[[[9.0, math.log(3)]]]], device=device)
    boxes = torch.tensor([[[[0.25, 0.5, 0.5, 1.0]]]], device=device)
    targets = torch.tensor([[0.75, 0.5, 0.5, 1.0], [0.25, 0.5, 0.5, 0.5]], device=device)
    image, labels = torch.zeros(2, dtype=torch.long, device=device), torch.ones(2, dtype=torch.long, device=device)
    cost = ops.matching_cost(scores, boxes, image, labels, targets, **WEIGHTS)
    focal = 0.75 * 0.75**2 * math.log(0.25) - 0.25 * 0.25**2 * math.log(0.75)
    expected = [[[2 * focal + 5 * 0.5 - 0], [2 * focal + 5 * 0.5 - 2 * 0.5]]]  # the second: IoU 1/2, hull = union
    torch.testing.assert_close(cost.cpu(), torch.tensor(expected).mT.reshape(1, 2, 1))
    probability = ops.matching_cost(scores.sigmoid(), boxes, image, labels, targets, **WEIGHTS, focal=False)
    torch.testing.assert_close((probability - cost).cpu(), torch.full((1, 2, 1), 2 * (-0.75 - focal)))


@pytest.mark.parametrize('gamma', [2.0, 0.0, 1.5])
@pytest.mark.parametrize('Q', [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 300])
def test_against_fp64(Q, gamma, device):
    """Numbers of queries around the width of a vector. Tolerance: some ten roundings of terms of up to 50."""
    arguments = make(Q=Q, device=device)
    cost = ops.matching_cost(*arguments, **WEIGHTS, alpha=0.3, gamma=gamma)
    torch.testing.assert_close(cost.double(), sum_of_costs(*arguments, alpha=0.3, gamma=gamma), rtol=2e-6, atol=1e-5)


def test_probabilities_against_fp64(device):
    scores, *rest = make(Q=21, device=device)
    cost = ops.matching_cost(scores.softmax(-1), *rest, **WEIGHTS, focal=False)
    torch.testing.assert_close(cost.double(), sum_of_costs(scores, *rest, focal=False), rtol=2e-6, atol=1e-5)


def test_huge_logits_are_finite_and_ordered(device):
    """The cost falls with the logit of the target's class: by 2 alpha far left, by 2 (1 - alpha) far right."""
    scores = torch.tensor([-1e30, -1e4, -30.0, 0.0, 30.0, 1e4, 1e30], device=device).view(1, 1, 7, 1)
    boxes, one = torch.full((1, 1, 7, 4), 0.5, device=device), torch.zeros(1, dtype=torch.long, device=device)
    cost = ops.matching_cost(scores, boxes, one, one, boxes[0, 0, :1], **WEIGHTS)[0, 0]
    assert cost.isfinite().all()
    assert (cost.diff() < 0).all()
    torch.testing.assert_close(cost[[0, -1]].cpu(), torch.tensor([2 * 0.25 * 1e30, -2 * 0.75 * 1e30]))


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_at_its_query_only(bad, device):
    for which, last in ((0, 1), (1, 0), (1, 3)):
        arguments = make(L=1, B=1, Q=20, C=2, T=1, device=device)
        arguments[3].fill_(1)
        arguments[which][0, 0, 9, last] = bad
        finite = ops.matching_cost(*arguments, **WEIGHTS)[0, 0].isfinite()
        assert finite.tolist() == [q != 9 for q in range(20)]
    arguments = make(L=1, B=1, T=2, device=device)
    arguments[4][1, 2] = bad
    assert ops.matching_cost(*arguments, **WEIGHTS).isfinite().all(2).tolist() == [[True, False]]


@pytest.mark.parametrize('empty', ['L', 'Q', 'T'])
def test_empty(empty, device):
    arguments = make(**{empty: 0}, device=device)
    cost = ops.matching_cost(*arguments, **WEIGHTS)
    assert cost.shape == (0 if empty == 'L' else 2, 0 if empty == 'T' else 5, 0 if empty == 'Q' else 7)


def test_any_layout_and_number_of_threads(device):
    arguments = make(L=3, B=2, Q=301, C=5, T=40, device=device)
    expected = ops.matching_cost(*arguments, **WEIGHTS)
    strided = [x.mT.contiguous().mT if x.dim() > 1 else torch.stack([x, x], 1)[:, 0] for x in arguments]
    assert torch.equal(ops.matching_cost(*strided, **WEIGHTS), expected)
    torch.set_num_threads(3)
    assert torch.equal(ops.matching_cost(*arguments, **WEIGHTS), expected)
    torch.set_num_threads(1)


def test_opcheck(device):
    operator = torch.ops.mmdet_ddetr.matching_cost.default
    torch.library.opcheck(operator, (*make(device=device), 2.0, 5.0, 2.0, 0.25, 2.0, True))


def test_errors_name_the_argument():
    arguments = make()

    def refuses(match, index, value, **kwargs):
        changed = [value if i == index else x for i, x in enumerate(arguments)]
        with pytest.raises(RuntimeError, match=match):
            ops.matching_cost(*changed, **WEIGHTS, **kwargs)

    scores, boxes, image, labels, targets = arguments
    refuses(r'scores must be \[L, B, Q, C\], got \[3, 7, 4\]', 0, scores[0])
    refuses(r'boxes must be \[L, B, Q, 4\] = \[2, 3, 7, 4\], got \[2, 3, 6, 4\]', 1, boxes[:, :, 1:])
    refuses(r'image must be \[T\], got \[5, 1\]', 2, image[:, None])
    refuses(r'labels must be \[T\] = \[5\], got \[4\]', 3, labels[1:])
    refuses(r'targets must be \[T, 4\] = \[5, 4\], got \[5, 3\]', 4, targets[:, 1:])
    refuses('scores, boxes and targets must be fp32, got', 1, boxes.double())
    refuses('image and labels must be int64, got', 3, labels.int())
    refuses(r'image must be in 0 ... 2, got 3', 2, image.clone().fill_(3))
    refuses(r'labels must be in 0 ... 3, got -1', 3, labels.clone().fill_(-1))
    refuses('gamma must not be negative, got -1', 0, scores, gamma=-1.0)


# --- in the matching --------------------------------------------------------------------------------------------------

FOCAL = [dict(type='FocalLossCost', weight=2.0), dict(type='BBoxL1Cost', weight=5.0, box_format='xywh')]
SOFTMAX = [dict(type='ClassificationCost', weight=1.0), *FOCAL[1:]]
GIOU = dict(type='IoUCost', iou_mode='giou', weight=2.0)


@pytest.mark.parametrize('costs', [[*FOCAL, GIOU], [GIOU, *SOFTMAX]], ids=['focal', 'softmax'])
def test_costs_of_the_paper_are_fused(costs, monkeypatch):
    scores, boxes, image, labels, targets = make(Q=30)
    assigner = HungarianAssigner(costs)
    assert assigner.fused_cost is not None
    truth = Targets(targets, labels, image, torch.bincount(image, minlength=3).tolist(), torch.ones(3, 4))
    fused = assigner.cost(scores, boxes, truth)
    monkeypatch.setattr(FusedCost, 'runs_on', lambda device: False)
    torch.testing.assert_close(fused, assigner.cost(scores, boxes, truth), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize(
    'costs',
    [
        FOCAL,
        [*FOCAL, GIOU, GIOU],
        [*FOCAL, dict(type='IoUCost', iou_mode='iou')],
        [FOCAL[0], dict(type='BBoxL1Cost', box_format='xyxy'), GIOU],
        [*SOFTMAX, FOCAL[0]],
    ],
)
def test_other_costs_are_not(costs):
    assert HungarianAssigner(costs).fused_cost is None


def test_it_is_a_constant_for_autograd(device):
    scores, *others = (x.to(device) for x in make())
    assert not ops.matching_cost(scores.requires_grad_(), *others, **WEIGHTS).requires_grad
