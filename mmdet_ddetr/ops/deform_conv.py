"""Deformable convolution, plain and modulated (DCN, arXiv:1703.06211; DCNv2, arXiv:1811.11168).

The public function, and what PyTorch has to know about its ops besides their kernels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.utils.flop_counter import register_flop_formula

from . import reference
from ._checks import FLOATS, check_conv_grad_output, check_deform_conv2d, compute_dtype
from ._load import LIBRARY
from ._private import below_autograd, beyond_first_order
from ._register import has_compiled_kernel, warn_of_device

_NAME = 'deform_conv2d'
_OP = torch.ops.mmdet_ddetr.deform_conv2d.default
_BACKWARD_OP = torch.ops.mmdet_ddetr.deform_conv2d_backward.default


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
    of a few MB of output cells exist at a time, in ``input``'s dtype; the backward pass samples anew.

    Raises:
        RuntimeError: an argument's shape, dtype or device does not fit.
    """
    geometry = [list(_pair(numbers)) for numbers in (stride, padding, dilation)]
    offset, mask = _cast(input, offset, mask)
    output = _OP(input, offset, weight.to(input.dtype) if weight.dtype in FLOATS else weight, *geometry, mask)
    if bias is None:
        return output
    if bias.shape != weight.shape[:1]:
        raise RuntimeError(f'bias must be [C_out] = {list(weight.shape[:1])}, got {list(bias.shape)}')
    return output + bias[:, None, None].to(output.dtype)


def _cast(input: Tensor, *points: Tensor | None) -> list[Tensor | None]:
    """offset and mask in a dtype that the kernels take: as it is, or the one input is computed in."""
    compute = compute_dtype(input.dtype)
    as_it_is = (input.dtype, compute)
    return [t if t is None or t.dtype in as_it_is or t.dtype not in FLOATS else t.to(compute) for t in points]


class _Call(NamedTuple):
    """The arguments of the op."""

    input: Tensor
    offset: Tensor
    weight: Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    mask: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # without an absent mask
        return tuple(t for t in (self.input, self.offset, self.weight, self.mask) if t is not None)

    def check(self) -> tuple[int, int]:
        return check_deform_conv2d(*self)

    def with_tensors(self, *tensors: Tensor) -> '_Call':
        input, offset, weight, *mask = tensors
        return self._replace(input=input, offset=offset, weight=weight, mask=mask[0] if mask else None)

    def reference(self) -> Tensor:
        input, offset, weight, *geometry, mask = self
        return reference.deform_conv2d(input, offset, weight, None, *geometry, mask)

    def vjp(self, grad_output: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Gradients of ``tensors`` by differentiable operations."""
        return torch.func.vjp(lambda *t: self.with_tensors(*t).reference(), *tensors)[1](grad_output)


def _reference(*arguments):
    call = _Call(*arguments)
    call.check()
    warn_of_device(call.input.device.type)
    return call.reference()


# --- shapes -----------------------------------------------------------------------------------------------------------


def _fake(*arguments):
    call = _Call(*arguments)
    Ho, Wo = call.check()
    return call.input.new_empty(call.input.shape[0], call.weight.shape[0], Ho, Wo)


def _fake_backward(grad_output, *rest):
    call, needs, _ = _split(rest)
    _check_backward(grad_output, call)
    return _in_place([t.new_empty(t.shape) for t in call.tensors], call, *needs)


def _check_backward(grad_output: Tensor, call: _Call):
    Ho, Wo = call.check()
    check_conv_grad_output(grad_output, call.input, (call.input.shape[0], call.weight.shape[0], Ho, Wo))


def _split(rest) -> tuple[_Call, tuple[bool, bool], bool]:
    """Arguments of the backward op after grad_output -> those of the op, needs_grad_samples and _weight, determinism"""
    *arguments, needs_grad_samples, needs_grad_weight, deterministic = rest
    return _Call(*arguments), (needs_grad_samples, needs_grad_weight), deterministic


def _in_place(grads, call: _Call, needs_grad_samples: bool, needs_grad_weight: bool) -> tuple[Tensor, ...]:
    """Gradients of ``call.tensors`` -> of input, offset, weight, mask, empty where the op's are."""
    input, offset, weight, *mask = grads
    wanted = ((input, needs_grad_samples), (offset, needs_grad_samples), (weight, needs_grad_weight))
    grads = [grad if needed else grad.new_empty(0) for grad, needed in wanted]
    return *grads, mask[0] if mask and needs_grad_samples else input.new_empty(0)


# --- derivatives ------------------------------------------------------------------------------------------------------


def _autograd(*arguments):
    call = _Call(*arguments)
    if beyond_first_order():
        call.check()
        return call.reference()
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
        if not has_compiled_kernel(_NAME, call.input.device.type):
            return _reference(*call)  # PyTorch differentiates it
        return _Forward.apply(*call)
    with below_autograd():
        return _OP(*call)


def _autograd_backward(grad_output, *rest):
    if beyond_first_order():
        call, needs, _ = _split(rest)
        _check_backward(grad_output, call)
        return _in_place(call.vjp(grad_output, *call.tensors), call, *needs)
    if torch.is_grad_enabled():
        return _Backward.apply(grad_output, *rest)
    with below_autograd():
        return _BACKWARD_OP(grad_output, *rest)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        call = _Call(*arguments)
        ctx.geometry = call.stride, call.padding, call.dilation
        ctx.save_for_backward(call.input, call.offset, call.weight, call.mask)
        with below_autograd():
            return _OP(*call)

    @staticmethod
    def backward(ctx, grad_output):
        input, offset, weight, mask = ctx.saved_tensors
        needs = ctx.needs_input_grad
        flags = needs[0] or needs[1] or needs[6], needs[2], torch.are_deterministic_algorithms_enabled()
        grads = _BACKWARD_OP(grad_output, input, offset, weight, *ctx.geometry, mask, *flags)
        grad_input, grad_offset, grad_weight, grad_mask = (
            grad if needed else None for grad, needed in zip(grads, (*needs[:3], needs[6]))
        )
        return grad_input, grad_offset, grad_weight, None, None, None, grad_mask


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad_output, *rest):
        call, ctx.needs, _ = _split(rest)
        ctx.geometry = call.stride, call.padding, call.dilation
        ctx.save_for_backward(grad_output, call.input, call.offset, call.weight, call.mask)
        with below_autograd():
            return _BACKWARD_OP(grad_output, *rest)

    @staticmethod
    def backward(ctx, *grads):
        grad_output, *tensors, mask = ctx.saved_tensors
        call = _Call(*tensors, *ctx.geometry, mask)
        samples, weights = ctx.needs
        needed = (samples, samples, weights, samples)
        cotangents = tuple(g if n else torch.zeros_like(t) for g, n, t in zip(grads, needed, call.tensors))
        grad_output, *grads = torch.func.vjp(call.vjp, grad_output, *call.tensors)[1](cotangents)
        input, offset, weight, *mask = grads
        return grad_output, input, offset, weight, None, None, None, mask[0] if mask else None, None, None, None


# --- autocast: input and weight narrow, as those of a convolution; what fixes positions stays as exact as it is -------


def _autocast(device_type):
    def kernel(*arguments):
        call = _Call(*arguments)
        if call.input.dtype != torch.float64:
            narrow = torch.get_autocast_dtype(device_type)
            input = call.input.to(narrow)
            offset, mask = _cast(input, call.offset, call.mask)
            call = call._replace(input=input, offset=offset, weight=call.weight.to(narrow), mask=mask)
        with torch.autocast(device_type, enabled=False):  # the kernel below this one
            return _OP(*call)

    return kernel


# --- vmap: another dimension of channels, so that every example may have a weight of its own --------------------------


def _fold(size: int, dims, call: _Call) -> _Call:
    def channels(tensor, dim, axis):
        if tensor is None:
            return None
        moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return moved.movedim(0, axis).flatten(axis, axis + 1)

    return call._replace(
        input=channels(call.input, dims[0], 1),
        offset=channels(call.offset, dims[1], 1),
        weight=channels(call.weight, dims[2], 0),
        mask=channels(call.mask, dims[6], 1),
    )


def _vmap(info, in_dims, *arguments):
    return _OP(*_fold(info.batch_size, in_dims, _Call(*arguments))).unflatten(1, (info.batch_size, -1)), 1


def _vmap_backward(info, in_dims, grad_output, *rest):
    size = info.batch_size
    call, (samples, weights), deterministic = _split(rest)
    grad = grad_output.expand(size, *grad_output.shape) if in_dims[0] is None else grad_output.movedim(in_dims[0], 0)
    folded = _fold(size, in_dims[1:8], call)
    flags = samples, weights, deterministic
    grads = _BACKWARD_OP(grad.movedim(0, 1).flatten(1, 2), *folded, *flags)
    kept, axes = (samples, samples, weights, samples and call.mask is not None), (1, 1, 0, 1)
    return tuple(
        grad.unflatten(axis, (size, -1)) if keep else grad for grad, keep, axis in zip(grads, kept, axes)
    ), tuple(axis if keep else None for keep, axis in zip(kept, axes))


# --- operations, for torch.utils.flop_counter; it gives shapes for tensors --------------------------------------------


def _flops(input, offset, weight, stride, padding, dilation, mask, out_shape=None):
    """A multiply-add counts as two operations: five of each sample and channel, and the matrix product."""
    C_out, C_group, kh, kw = weight
    cells = offset[0] * offset[2] * offset[3]
    return 2 * cells * kh * kw * (5 * input[1] + C_out * C_group)


def _flops_backward(grad_output, *rest, out_shape=None):
    """Twice the forward's, as for a product: once for its left side, once for its right."""
    return 2 * _flops(*rest[:7])


LIBRARY.impl(_NAME, _reference, 'CompositeExplicitAutograd')
torch.library.register_fake(f'mmdet_ddetr::{_NAME}', _fake, lib=LIBRARY)
torch.library.register_fake(f'mmdet_ddetr::{_NAME}_backward', _fake_backward, lib=LIBRARY)
LIBRARY.impl(_NAME, _autograd, 'Autograd')
LIBRARY.impl(f'{_NAME}_backward', _autograd_backward, 'Autograd')
LIBRARY.impl(_NAME, _autocast('cpu'), 'AutocastCPU')
LIBRARY.impl(_NAME, _autocast('cuda'), 'AutocastCUDA')
torch.library.register_vmap(f'mmdet_ddetr::{_NAME}', _vmap, lib=LIBRARY)
torch.library.register_vmap(f'mmdet_ddetr::{_NAME}_backward', _vmap_backward, lib=LIBRARY)
register_flop_formula(_OP.overloadpacket)(_flops)
register_flop_formula(_BACKWARD_OP.overloadpacket)(_flops_backward)
