import itertools
import math

import numpy as np
import pytest
import torch
from mmdet.models.task_modules import HungarianAssigner as MMDetHungarianAssigner
from mmdet.models.task_modules.assigners import match_cost as mmdet_costs
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmdet_ddetr.ops import linear_sum_assignment
from mmdet_ddetr.task_modules import HungarianAssigner, Targets, match_costs

FOCAL = [
    dict(type='FocalLossCost', weight=2.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]
SOFTMAX = [dict(type='ClassificationCost', weight=1.0), *FOCAL[1:]]
SIZES = [(60, 100), (80, 50), (90, 90)]  # (h, w)
COUNTS = [3, 0, 5]
L, B, Q, C = 2, 3, 7, 4


@pytest.fixture
def problem():
    torch.manual_seed(0)
    logits = torch.randn(L, B, Q, C) * 3
    boxes = torch.rand(L, B, Q, 4) * 0.5 + 0.2
    T = sum(COUNTS)
    targets = Targets(
        boxes=torch.rand(T, 4) * 0.5 + 0.2,
        labels=torch.randint(0, C, (T,)),
        image=torch.repeat_interleave(torch.arange(B), torch.tensor(COUNTS)),
        counts=COUNTS,
        sizes=torch.tensor([[w, h, w, h] for h, w in SIZES], dtype=torch.float32),
    )
    return logits, boxes, targets


def instances(problem, layer, image):
    """What mmdet takes: predictions and ground truth of one image in pixels."""
    logits, boxes, targets = problem
    size = targets.sizes[image]
    mine = targets.image == image
    prediction = InstanceData(scores=logits[layer, image], bboxes=bbox_cxcywh_to_xyxy(boxes[layer, image]) * size)
    truth = InstanceData(labels=targets.labels[mine], bboxes=bbox_cxcywh_to_xyxy(targets.boxes[mine]) * size)
    return prediction, truth, dict(img_shape=SIZES[image])


@pytest.mark.parametrize(
    'config',
    [
        *SOFTMAX,
        FOCAL[0],
        dict(type='BBoxL1Cost'),
        dict(type='IoUCost', iou_mode='iou'),
        dict(type='IoUCost', iou_mode='iof'),
    ],
)
def test_costs_agree_with_mmdet(problem, config):
    """Each cost, every image and layer, against mmdet's image by image."""
    cost = HungarianAssigner(config).cost(*problem)
    assert cost.shape == (L, sum(COUNTS), Q)
    kwargs = {k: v for k, v in config.items() if k != 'type'}
    theirs = getattr(mmdet_costs, config['type'])(**kwargs)
    start = np.cumsum([0, *COUNTS])
    for layer, image in itertools.product(range(L), range(B)):
        if COUNTS[image]:
            prediction, *rest = instances(problem, layer, image)
            prediction.scores = prediction.scores.double()  # mmdet's log(1 - p) loses four digits in fp32
            expected = theirs(prediction, *rest).float()
            ours = cost[layer, start[image] : start[image + 1]].T
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_focal_cost_by_hand():
    targets = Targets(torch.zeros(1, 4), torch.tensor([1]), torch.tensor([0]), [1], torch.ones(1, 4))
    logits = torch.tensor([[[[9.0, math.log(3)]]]])  # p = 3/4 for the target's class
    cost = HungarianAssigner(dict(type='FocalLossCost', weight=2.0)).cost(logits, torch.rand(1, 1, 1, 4), targets)
    expected = 2 * (-0.25 * 0.25**2 * math.log(0.75) + 0.75 * 0.75**2 * math.log(0.25))
    assert cost.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_focal_cost_of_large_16_bit_logits_is_finite_and_ordered(dtype):
    """mmdet's is -inf in fp16 beyond 8.32 and flat in bf16 beyond 7."""
    targets = Targets(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([0]), [1], torch.ones(1, 4))
    logits = torch.tensor([-40.0, -20.0, 0.0, 5.0, 7.0, 8.5, 20.0, 40.0], dtype=dtype).view(1, 1, -1, 1)
    cost = HungarianAssigner(dict(type='FocalLossCost')).cost(logits, torch.rand(1, 1, 8, 4), targets)
    assert torch.isfinite(cost).all()
    assert (cost.flatten().diff() < 0).all(), 'a larger logit must cost less'


@pytest.mark.parametrize('costs', [FOCAL, SOFTMAX], ids=['focal', 'softmax'])
def test_match_is_optimal_and_equals_mmdet(problem, costs):
    init_default_scope('mmdet')
    assigner = HungarianAssigner(costs)
    (match,) = assigner.match([problem[:2]], [problem[2]])
    assert match.per_layer == sum(min(Q, n) for n in COUNTS) == 8
    theirs = MMDetHungarianAssigner(costs)
    for layer, image in itertools.product(range(L), range(B)):
        here = (match.layer == layer) & (match.image == image)
        expected = theirs.assign(*instances(problem, layer, image)).gt_inds
        ours = torch.zeros(Q, dtype=torch.long)
        ours[match.query[here]] = match.target[here] - sum(COUNTS[:image]) + 1
        assert torch.equal(ours, expected)
        result = assigner.assign(*instances(problem, layer, image))  # mmdet's interface of ours
        assert torch.equal(result.gt_inds, expected)
        assert (result.labels[expected == 0] == -1).all()


def test_match_by_brute_force(problem):
    logits, boxes, targets = problem
    assigner = HungarianAssigner(FOCAL)
    cost = assigner.cost(*problem)
    (match,) = assigner.match([(logits, boxes)], [targets])
    for layer, (image, first, count) in itertools.product(range(L), [(0, 0, 3), (2, 3, 5)]):
        here = (match.layer == layer) & (match.image == image)
        total = sum(cost[layer, t, q].item() for t, q in zip(match.target[here], match.query[here]))
        best = min(
            sum(cost[layer, first + t, q].item() for t, q in enumerate(queries))
            for queries in itertools.permutations(range(Q), count)
        )
        assert total == pytest.approx(best, abs=1e-5)
        assert len(set(match.query[here].tolist())) == count


def test_several_sets_with_one_copy_to_the_host(problem, monkeypatch):
    logits, boxes, targets = problem
    more = (torch.randn(1, B, 11, C), torch.rand(1, B, 11, 4))
    assigner = HungarianAssigner(FOCAL)
    expected = [assigner.match([p], [targets])[0] for p in ((logits, boxes), more)]
    copies = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda self: copies.append(self) or to_host(self))
    together = assigner.match([(logits, boxes), more], [targets, targets])
    assert len(copies) == 1
    for a, b in zip(together, expected, strict=True):
        assert torch.equal(a.query, b.query) and torch.equal(a.target, b.target)


def test_assignment_is_an_op():
    """torch.compile traces past it: the number of pairs follows from the numbers of targets and queries."""
    costs, sizes = torch.rand(2 * 5 * 7 + 13 * 4), ([2, 1], [7, 4], [3, 2, 7, 6])
    torch.library.opcheck(torch.ops.mmdet_ddetr.linear_sum_assignment.default, (costs, *sizes))
    assert linear_sum_assignment(costs, *sizes).shape == (4, 2 * (3 + 2) + (4 + 4))


def test_no_target_and_more_targets_than_queries(problem):
    logits, boxes, _ = problem
    none = torch.zeros(0, dtype=torch.long)
    empty = Targets(torch.zeros(0, 4), none, none, [0] * B, None)
    (match,) = HungarianAssigner(FOCAL).match([(logits, boxes)], [empty])
    assert match.per_layer == 0 and match.query.numel() == 0
    zeros = torch.zeros(9, dtype=torch.long)
    many = Targets(torch.rand(9, 4), zeros, zeros, [9, 0, 0], None)
    (match,) = HungarianAssigner(FOCAL).match([(logits, boxes)], [many])
    assert match.per_layer == Q
    assert match.query[match.layer == 0].sort().values.tolist() == list(range(Q))


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_non_finite_costs_are_named(problem, bad):
    logits, boxes, targets = problem
    logits[1, 2, 4] = bad
    with pytest.raises(ValueError, match='not finite in prediction layer 1, image 2 of the batch: 5 of 35 pairs'):
        HungarianAssigner(FOCAL).match([(logits, boxes)], [targets])


def test_unknown_cost_is_named():
    for name in ('DiceCost', 'mmdet.CrossEntropyLossCost', 'BinaryFocalLossCost', mmdet_costs.DiceCost):
        with pytest.raises(ValueError, match='Cost is no cost of classes and boxes, .*; there are .*FocalLossCost'):
            HungarianAssigner([dict(type=name)])
    with pytest.raises(ValueError, match='match_costs: Nothing is no cost'):
        HungarianAssigner([dict(type='Nothing')])
    with pytest.raises(ValueError, match='binary_input=True compares masks'):
        HungarianAssigner([dict(type='FocalLossCost', binary_input=True)])
    with pytest.raises(ValueError, match='at least one cost'):
        HungarianAssigner([])
    with pytest.raises(ValueError, match="'xyxy' or 'xywh', got 'cxcywh'"):
        match_costs.BBoxL1Cost(box_format='cxcywh')
