"""Deformable convolution, plain and modulated (DCN, arXiv:1703.06211; DCNv2, arXiv:1811.11168).

The public function, and what PyTorch has to know about its op besides its kernels.
"""

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from . import reference
from ._checks import FLOATS, check_conv_grad_output, check_deform_conv2d
from ._differentiable import DifferentiableOp, as_points

_OP = torch.ops.mmdet_ddetr.deform_conv2d.default


def deform_conv2d(
    input: Tensor,  # [B, C, H, W]
    offset: Tensor,  # [B, G*T*2, Ho, Wo]; G offset groups, T = kh*kw taps
    weight: Tensor,  # [C_out, C/groups, kh, kw]
    bias: Tensor | None = None,  # [C_out]
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,  # [B, G*T, Ho, Wo]
) -> Tensor:  # [B, C_out, Ho, Wo]
    """A convolution whose taps are displaced, and weighted where there is a mask.

    Arguments and result are those of ``torchvision.ops.deform_conv2d``, samples and borders those of mmcv, too. The
    number of groups follows from ``weight``, that of offset groups from ``offset``. Differentiable any number of times
    and in both modes; the first backward is compiled, what lies beyond is plain PyTorch.

    Args:
        input: fp64, fp32, fp16 or bf16. In ``channels_last`` it is sampled without a copy.
        offset: displacement of each tap in cells of ``input``, (y, x); group by group, tap by tap, rows of the kernel
            first. Coordinates are computed in fp32 (fp64 where input is fp64).
        weight: as for ``torch.nn.functional.conv2d``.
        mask: factor of each tap, as a rule in [0, 1]; None: 1 (DCN).
        stride, padding, dilation: as for ``conv2d``; a pair is (y, x).

    A sample is bilinear among the cells and zeros around them: it fades out within one cell of the border. The samples
    of a few MB of output cells exist at a time; the backward pass samples anew.

    Raises:
        RuntimeError: an argument's shape, dtype or device does not fit.
    """
    geometry = [list(_pair(numbers)) for numbers in (stride, padding, dilation)]
    offset, mask = as_points(input, offset, mask)
    output = _OP(input, offset, weight.to(input.dtype) if weight.dtype in FLOATS else weight, *geometry, mask)
    if bias is None:
        return output
    if bias.shape != weight.shape[:1]:
        raise RuntimeError(f'bias must be [C_out] = {list(weight.shape[:1])}, got {list(bias.shape)}')
    return output + bias[:, None, None].to(output.dtype)


def _check(input, offset, weight, stride, padding, dilation, mask):
    Ho, Wo = check_deform_conv2d(input, offset, weight, stride, padding, dilation, mask)
    return input.shape[0], weight.shape[0], Ho, Wo


def _reference(input, offset, weight, stride, padding, dilation, mask):
    return reference.deform_conv2d(input, offset, weight, None, stride, padding, dilation, mask)


def _narrow(dtype, input, offset, weight, stride, padding, dilation, mask):
    """input and weight narrow, as those of a convolution; what fixes positions stays as exact as it is."""
    input = input.to(dtype)
    offset, mask = as_points(input, offset, mask)
    return input, offset, weight.to(dtype), stride, padding, dilation, mask


def _flops(input, offset, weight, stride, padding, dilation, mask):
    """A multiply-add counts as two operations: five of each sample and channel, and the matrix product."""
    C_out, C_group, kh, kw = weight
    cells = offset[0] * offset[2] * offset[3]
    return 2 * cells * kh * kw * (5 * input[1] + C_out * C_group)


DifferentiableOp(
    'deform_conv2d',
    check=_check,
    check_grad=check_conv_grad_output,
    reference=_reference,
    flops=_flops,
    needs={0: 0, 1: 0, 2: 1, 6: 0},  # samples: input, offset, mask; weight
    narrow=_narrow,
    axes={0: 1, 1: 1, 2: 0, 6: 1},  # of channels, so that every example may have a weight of its own
    output_axis=1,
).register()
