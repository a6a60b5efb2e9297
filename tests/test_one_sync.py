"""Training copies from the accelerator to the host once, for the matching, and hardly waits for it otherwise.

Meta tensors stand for those of an accelerator and need none: they have no values, so what would copy one to the host or
wait for it (cpu, item, nonzero, boolean masks) raises. The matching is the one op that may.
"""

import contextlib
import sys

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet_ddetr import get_config
from mmdet_ddetr.heads import SetHead
from mmdet_ddetr.ops import _register, linear_sum_assignment
from mmdet_ddetr.task_modules.fused_cost import FusedCost
from mmdet_ddetr.testing import make_batch, shrink

sigmoid_focal_loss = sys.modules['mmdet_ddetr.ops.sigmoid_focal_loss']  # the module, which its function hides
L, B, Q, CLASSES, S = 6, 2, 20, 5, 50
GIOU_COPIES = (
    1  # a set of predictions: mmdet's bbox_overlaps makes a tensor of its eps; the queue is all but empty then
)
ASSIGNMENT = torch.ops.mmdet_ddetr.linear_sum_assignment.default


class Dispatched(TorchDispatchMode):
    """Counts assignments, and copies to the accelerator that are not ``non_blocking``."""

    def __init__(self):
        super().__init__()
        self.assignments = self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.assignments += func is ASSIGNMENT
        if func is torch.ops.aten.copy_.default:
            self.copies += args[0].is_meta and args[1].is_cpu and not any(args[2:])
        elif func is torch.ops.aten._to_copy.default:
            self.copies += result.is_meta and args[0].is_cpu and not kwargs.get('non_blocking', False)
        return result


class Created(TorchFunctionMode):
    """Counts tensors that are made on the accelerator from Python's numbers: a copy of which no operator tells."""

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            self.copies += result.is_meta
        return result


def waits(function) -> tuple[int, int]:
    """How often ``function()`` makes the host wait: for assignments, and for copies to the accelerator."""
    with Dispatched() as dispatched, Created() as created:
        function()
    return dispatched.assignments, dispatched.copies + created.copies


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
    """Lets meta tensors go the way of a GPU's: the ops have compiled kernels for them, autocast knows them."""
    monkeypatch.setattr(_register, 'has_compiled_kernel', lambda name, device: True)
    monkeypatch.setattr(sigmoid_focal_loss, 'has_compiled_kernel', lambda name, device: True)
    monkeypatch.setattr(FusedCost, 'runs_on', lambda device: True)
    monkeypatch.setattr(torch, 'autocast', lambda device, **kwargs: contextlib.nullcontext())


@pytest.mark.parametrize('fused', [True, False], ids=['one op', 'single costs'])
@pytest.mark.parametrize('counts', [(3, 4), (0, 2), (0, 0)])
def test_loss(counts, fused, monkeypatch):
    monkeypatch.setattr(FusedCost, 'runs_on', lambda device: fused)
    head = SetHead(CLASSES, embed_dims=8, num_pred_layer=L + 1, as_two_stage=True)
    predictions = [
        torch.randn(*size, device='meta', requires_grad=True)
        for size in [(L, B, Q, CLASSES), (L, B, Q, 4), (B, S, CLASSES), (B, S, 4)]
    ]
    truth = [
        InstanceData(bboxes=torch.rand(n, 4, device='meta'), labels=torch.zeros(n, dtype=torch.long, device='meta'))
        for n in counts
    ]

    def step():
        losses = head.loss_by_feat(*predictions, truth, [dict(img_shape=(60, 80))] * B)
        assert len(losses) == 3 * (L + 1)
        sum(losses.values()).backward()

    assert waits(step) == (1, 2 * GIOU_COPIES if sum(counts) else 0)  # decoder and encoder
    assert all(tensor.grad.shape == tensor.shape for tensor in predictions)


@pytest.mark.parametrize('mode', ['loss', 'predict'])
@pytest.mark.parametrize(
    'name',
    [
        'deformable-detr-refine-twostage_r50_16xb2-50e_coco',
        'dn-dab-detr_r50_8xb2-50e_coco',
        pytest.param('smca-detr-multi-scale_r50_8xb1-50e_coco', marks=pytest.mark.slow),
        pytest.param('sam-detr-smca-multi-scale_r50_8xb2-12e_coco', marks=pytest.mark.slow),
        pytest.param('dab-deformable-detr-twostage_r50_8xb2-50e_coco', marks=pytest.mark.slow),
        pytest.param('anchor-detr_r50_8xb1-50e_coco', marks=pytest.mark.slow),
    ],
)
def test_whole_model(name, mode):
    """Backbone to loss and back, with padding, refined boxes and proposals; prediction waits for nothing at all."""
    init_default_scope('mmdet')
    config = shrink(get_config(name).model)
    config.bbox_head.num_classes = CLASSES
    inputs, samples = make_batch([(64, 96), (57, 64)], [2, 1], CLASSES)
    with torch.device('meta'):
        model = MODELS.build(config).train(mode == 'loss')
    inputs, samples = inputs.to('meta'), [sample.to('meta') for sample in samples]

    def step():
        outputs = model(inputs, samples, mode=mode)
        if mode == 'loss':
            sum(outputs.values()).backward()

    sets = 1 + model.as_two_stage + (model.dn_query_generator is not None)
    assert waits(step) == ((1, sets * GIOU_COPIES) if mode == 'loss' else (0, 0))


def test_the_assignment_copies_once(monkeypatch):
    copies = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda self: copies.append(self) or to_host(self))
    linear_sum_assignment(torch.rand(2 * 5 * 7 + 5 * 9), [2, 1], [7, 9], [3, 2, 3, 2])
    assert len(copies) == 1


@pytest.mark.parametrize(
    'wait', [torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.nonzero, lambda x: x[x > 0], lambda x: bool(x)]
)
def test_waiting_for_a_value_raises(wait):
    """Or else the tests above would prove nothing."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait(torch.ones((), device='meta'))


def test_copies_are_seen():
    here, there = torch.ones(3), torch.ones(3, device='meta')
    copies = {
        lambda: here.to('meta'): 1,
        lambda: here.to('meta', non_blocking=True): 0,
        lambda: there.copy_(here): 1,
        lambda: there.copy_(here, non_blocking=True): 0,
        lambda: torch.tensor([1.0], device='meta'): 1,
        lambda: there.new_tensor([1.0]): 1,
        lambda: there.new_full((2,), 1.0): 0,
    }
    for copy, expected in copies.items():
        assert waits(copy) == (0, expected)
