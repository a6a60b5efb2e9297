"""What torch.utils.flop_counter counts for the operators."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmdet_ddetr.ops import ms_deform_attn, ms_deform_attn_fused

B, M, D, Q, K = 2, 3, 4, 5, 6
SHAPES = [(2, 3), (1, 2)]
SAMPLES = B * Q * M * len(SHAPES) * K


def count(function, *tensors):
    with FlopCounterMode(display=False) as counter:
        function(*tensors)
    return counter.get_total_flops()


def plain(value):
    locations = torch.rand(B, Q, M, len(SHAPES), K, 2)
    return ms_deform_attn(value, SHAPES, locations, torch.rand(B, Q, M, len(SHAPES), K))


def fused(value):
    offsets = torch.randn(B, Q, M, len(SHAPES), K, 2)
    return ms_deform_attn_fused(
        value, SHAPES, torch.rand(B, Q, len(SHAPES), 4), offsets, torch.randn(B, Q, M, len(SHAPES) * K)
    )


@pytest.mark.parametrize('attention', [plain, fused])
def test_forward(attention):
    """5 multiply-adds a sample and channel (paper, appendix A.1), of two operations each: 2 * 5 * 360 * 4."""
    assert SAMPLES == 360
    assert count(attention, torch.randn(B, 8, M, D)) == 14400


@pytest.mark.parametrize('attention', [plain, fused])
def test_backward_counts_twice_the_forward(attention):
    value = torch.randn(B, 8, M, D, requires_grad=True)
    if not torch._C._dispatch_has_kernel_for_dispatch_key('mmdet_ddetr::ms_deform_attn', 'CPU'):
        pytest.skip('without the compiled op, PyTorch differentiates single steps, which it does not count')
    assert count(lambda x: attention(x).sum().backward(), value) == 3 * 14400
