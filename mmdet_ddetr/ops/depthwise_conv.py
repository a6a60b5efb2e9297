"""Depthwise convolution: the public function, and what PyTorch has to know about its op besides its kernels."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from ._checks import check_conv_grad_output, check_depthwise_conv2d
from ._differentiable import DifferentiableOp
from ._private import beyond_first_order
from ._register import has_compiled_kernel, register_for_inference

_OP = torch.ops.mmdet_ddetr.depthwise_conv2d.default


def depthwise_conv2d(
    input: Tensor,  # [B, C, H, W]
    weight: Tensor,  # [C, 1, kh, kw]
    bias: Tensor | None = None,  # [C]
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
) -> Tensor:  # [B, C, Ho, Wo]
    """Convolve each channel with a kernel of its own (MobileNets, arXiv:1704.04861, section 3.1).

    The same as ``torch.nn.functional.conv2d`` with ``groups=C``, for maps in ``channels_last``: on the CPU the backward
    pass is many times as fast, in bf16 as in fp32, and the padding, which may differ from side to side, costs no copy.
    Without a compiled kernel for the device, while a program is traced, under forward-mode differentiation and
    torch.func, this is ``conv2d``.

    Args:
        input: fp64, fp32, fp16 or bf16; computed in fp32 (fp64 where it is fp64).
        weight, bias: of input's dtype.
        stride: (y, x).
        padding: rows and columns of zeros, (top, left, bottom, right).

    Returns:
        The output in ``channels_last``; bitwise the same for any number of CPU threads, gradients included.

    Raises:
        RuntimeError: an argument's shape, dtype or device does not fit.
    """
    if not _has_kernel(input):
        top, left, bottom, right = padding
        if (top, left) == (bottom, right):
            return F.conv2d(input, weight, bias, tuple(stride), (top, left), groups=len(weight))
        return F.conv2d(F.pad(input, (left, right, top, bottom)), weight, bias, tuple(stride), groups=len(weight))
    if input.dim() != 4 or weight.dim() != 4 or weight.shape[:2] != (input.shape[1], 1):
        raise RuntimeError(
            f'input must be [B, C, H, W] and weight [C, 1, kh, kw], got {list(input.shape)} and {list(weight.shape)}'
        )
    taps = weight.flatten(1).t().unflatten(0, weight.shape[2:])
    return _OP(input.permute(0, 2, 3, 1), taps, bias, list(stride), list(padding)).permute(0, 3, 1, 2)


def _has_kernel(input: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or beyond_first_order():
        return False
    return has_compiled_kernel('depthwise_conv2d', input.device.type)


def _narrow(dtype, input, weight, bias, stride, padding):
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), stride, padding


def _flops(input, weight, bias, stride, padding):
    """A multiply-add counts as two operations."""
    (B, H, W, C), (kh, kw, _), (top, left, bottom, right) = input, weight, padding
    rows, columns = (H + top + bottom - kh) // stride[0] + 1, (W + left + right - kw) // stride[1] + 1
    return 2 * B * rows * columns * C * kh * kw


DifferentiableOp(
    'depthwise_conv2d',
    check=check_depthwise_conv2d,
    check_grad=partial(check_conv_grad_output, dims='B, Ho, Wo, C'),
    reference=reference.depthwise_conv2d,
    flops=_flops,
    needs={0: 0, 1: 1, 2: 1},
    narrow=_narrow,
    axes={0: 3, 1: 2, 2: 0},  # of channels, so that every example may have a weight of its own
    output_axis=3,
).register()

register_for_inference(
    'depthwise_conv2d_clamped',
    check=lambda *arguments: check_depthwise_conv2d(*arguments[:5]),
    reference=lambda *arguments: reference.depthwise_conv2d(*arguments[:5]).clamp(*arguments[5:]),
    flops=lambda *arguments: _flops(*arguments[:5]),
)
