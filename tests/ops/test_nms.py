"""Which boxes non-maximum suppression keeps; `tests/test_compat.py` compares mmcv's functions that use it."""

import pytest
import torch

from mmdet_ddetr import ops
from mmdet_ddetr.ops.nms import _without_kernel

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 6, 10, 10], [20, 0, 21, 1]])  # IoU 0.5, 0.4, 0, ...


@pytest.mark.parametrize('function', [ops.nms_keep, _without_kernel])
@pytest.mark.parametrize(
    'threshold, offset, kept',
    [
        (0.5, 0, [True, True, True, True]),  # as much as the threshold is not more
        (0.49, 0, [True, False, True, True]),
        (0.3, 0, [True, False, False, True]),
        (0.5, 1, [True, False, True, True]),  # 11 * 6 of 11 * 11 pixels
    ],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_by_hand(function, threshold, offset, kept, dtype):
    assert function(BOXES.to(dtype), threshold, offset).tolist() == kept


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('offset', [0, 1])
def test_kernel_and_numpy_agree(seed, offset):
    """With boxes turned inside out, without area, infinite and not a number."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(300, 4, generator=generator) * 20
    boxes[:200, 2:] += boxes[:200, :2]
    boxes[200:220] = boxes[200:220].round()
    boxes[220:240, 2:] = boxes[220:240, :2]
    boxes[240] = torch.inf
    boxes[250, 1] = torch.nan
    boxes[260, 2] = -torch.inf
    boxes = boxes[torch.randperm(300, generator=generator)]
    for dtype in (torch.float32, torch.float64):
        kept = ops.nms_keep(boxes.to(dtype), 0.3, offset)
        assert torch.equal(kept, _without_kernel(boxes.to(dtype), 0.3, offset))
        assert 30 < kept.sum() < 300


def test_any_strides_and_no_boxes():
    assert torch.equal(ops.nms_keep(BOXES.T.contiguous().T, 0.3), ops.nms_keep(BOXES, 0.3))
    assert torch.equal(ops.nms_keep(BOXES.repeat(1, 2)[:, 4:], 0.3), ops.nms_keep(BOXES, 0.3))
    assert ops.nms_keep(BOXES[:0], 0.3).shape == (0,)


@pytest.mark.skipif(not ops.has_compiled_kernel('nms_keep', 'cpu'), reason='the extension is not built')
def test_errors_name_the_argument():
    with pytest.raises(RuntimeError, match=r'boxes must be \[N, 4\], got \[4, 3\]'):
        ops.nms_keep(BOXES[:, :3], 0.3)
    with pytest.raises(RuntimeError, match='boxes must be fp32 or fp64, got'):
        ops.nms_keep(BOXES.half(), 0.3)
    with pytest.raises(RuntimeError, match='offset must be 0 or 1, got 2'):
        ops.nms_keep(BOXES, 0.3, 2)


def test_other_devices_and_compile():
    assert ops.nms_keep(BOXES.to('meta'), 0.3).device.type == 'meta'
    torch.library.opcheck(torch.ops.mmdet_ddetr.nms_keep.default, (BOXES, 0.3, 0))
