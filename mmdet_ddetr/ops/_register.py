"""What PyTorch has to know about an attention op besides its compiled kernels.

LibTorch's stable ABI registers kernels and nothing else. Here the ops get shape functions, derivatives of any order in
both modes, the autocast rule, vmap, a count of their operations, and kernels in plain PyTorch for devices that have no
compiled one.

An op is ``name(value, spatial_shapes, *points) -> output`` with ``name_backward(grad_output, value, spatial_shapes,
*points, *flags) -> grad_value, *grad_points``. The first dimension of all tensors is the batch. spatial_shapes is flat:
H0, W0, H1, W1, ...
"""

import functools
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._checks import check_grad_output
from ._load import EXTENSION_LOADED, LIBRARY, PACKAGE, how_to_build
from ._private import below_autograd, beyond_first_order, has_own_kernel


def pairs(flat: list[int]) -> list[tuple[int, int]]:
    """H0, W0, H1, W1, ... -> [(H0, W0), (H1, W1), ...]."""
    return list(zip(flat[::2], flat[1::2]))


class RegisteredOp:
    """Connects an op, which has a ``name``, with what a subclass knows of it: ``_reference``, ``_fake`` and so on."""

    def __post_init__(self):
        self.forward = getattr(torch.ops.mmdet_ddetr, self.name).default
        self.backward = getattr(torch.ops.mmdet_ddetr, f'{self.name}_backward').default

    def register(self):
        backward = f'{self.name}_backward'
        LIBRARY.impl(self.name, self._reference, 'CompositeExplicitAutograd')
        torch.library.register_fake(f'mmdet_ddetr::{self.name}', self._fake, lib=LIBRARY)
        torch.library.register_fake(f'mmdet_ddetr::{backward}', self._fake_backward, lib=LIBRARY)
        LIBRARY.impl(self.name, self._autograd, 'Autograd')
        LIBRARY.impl(backward, self._autograd_backward, 'Autograd')
        LIBRARY.impl(self.name, self._autocast('cpu'), 'AutocastCPU')
        LIBRARY.impl(self.name, self._autocast('cuda'), 'AutocastCUDA')
        torch.library.register_vmap(f'mmdet_ddetr::{self.name}', self._vmap, lib=LIBRARY)
        torch.library.register_vmap(f'mmdet_ddetr::{backward}', self._vmap_backward, lib=LIBRARY)
        register_flop_formula(self.forward.overloadpacket)(self._flops)
        register_flop_formula(self.backward.overloadpacket)(self._flops_backward)


@dataclass
class AttentionOp(RegisteredOp):
    """An op and the same in plain PyTorch; ``register()`` connects them.

    Attributes:
        name: the op's name in ``torch.ops.mmdet_ddetr``.
        check: raises where the arguments, in the op's own form, do not fit.
        reference: the op in plain PyTorch, with spatial_shapes as pairs.
        differentiable: the same, from differentiable operations only; slower.
        cast: (value, *points) -> the same in dtypes that the kernels take, value unchanged.
        optional_grads: how many of the points have a gradient only if a flag asks for it; they come first.
    """

    name: str
    check: Callable[..., None]
    reference: Callable[..., Tensor]
    differentiable: Callable[..., Tensor]
    cast: Callable[..., tuple[Tensor, ...]]
    optional_grads: int = 0

    # --- devices without a compiled kernel ---------------------------------------------------------------------------

    def _reference(self, value, spatial_shapes, *points):
        self.check(value, spatial_shapes, *points)
        warn_of_device(value.device.type)
        return self.reference(value, pairs(spatial_shapes), *points)

    # --- shapes ------------------------------------------------------------------------------------------------------

    def _fake(self, value, spatial_shapes, *points):
        self.check(value, spatial_shapes, *points)
        B, _, M, D = value.shape
        return value.new_empty(B, points[0].shape[1], M * D)

    def _fake_backward(self, grad_output, value, spatial_shapes, *rest):
        points, needs_grad, _ = self._split(rest)
        self._check_backward(grad_output, value, spatial_shapes, *points)
        return self._drop_unasked([tensor.new_empty(tensor.shape) for tensor in (value, *points)], needs_grad)

    def _check_backward(self, grad_output, value, spatial_shapes, *points):
        self.check(value, spatial_shapes, *points)
        check_grad_output(grad_output, value, points[0].shape[1])

    # --- derivatives -------------------------------------------------------------------------------------------------

    def _autograd(self, value, spatial_shapes, *points):
        if beyond_first_order():
            self.check(value, spatial_shapes, *points)
            return self.differentiable(value, pairs(spatial_shapes), *points)
        if torch.is_grad_enabled() and (value.requires_grad or any(p.requires_grad for p in points)):
            if not has_compiled_kernel(self.name, value.device.type):
                return self._reference(value, spatial_shapes, *points)  # PyTorch differentiates it
            return _Forward.apply(self, value, spatial_shapes, *points)
        with below_autograd():
            return self.forward(value, spatial_shapes, *points)

    def _autograd_backward(self, grad_output, value, spatial_shapes, *rest):
        if beyond_first_order():
            points, needs_grad, _ = self._split(rest)
            self._check_backward(grad_output, value, spatial_shapes, *points)
            return self._drop_unasked(
                _vjp(self.differentiable, spatial_shapes)(grad_output, value, *points), needs_grad
            )
        if torch.is_grad_enabled():
            return _Backward.apply(self, grad_output, value, spatial_shapes, *rest)
        with below_autograd():
            return self.backward(grad_output, value, spatial_shapes, *rest)

    # --- autocast ----------------------------------------------------------------------------------------------------

    def _autocast(self, device_type):
        """Value narrow, as the projections around the op; what fixes positions stays as exact as it is."""

        def kernel(value, spatial_shapes, *points):
            if value.dtype != torch.float64:
                value = value.to(torch.get_autocast_dtype(device_type))
            with torch.autocast(device_type, enabled=False):  # the kernel below this one
                return self.forward(value, spatial_shapes, *self.cast(value, *points))

        return kernel

    # --- vmap: another batch dimension -------------------------------------------------------------------------------

    def _vmap(self, info, in_dims, value, spatial_shapes, *points):
        value, *points = _fold(info.batch_size, (in_dims[0], *in_dims[2:]), (value, *points))
        return self.forward(value, spatial_shapes, *points).unflatten(0, (info.batch_size, -1)), 0

    def _vmap_backward(self, info, in_dims, grad_output, value, spatial_shapes, *rest):
        points, needs_grad, flags = self._split(rest)
        dims = (*in_dims[:2], *in_dims[3 : 3 + len(points)])
        grad_output, value, *points = _fold(info.batch_size, dims, (grad_output, value, *points))
        grads = self.backward(grad_output, value, spatial_shapes, *points, *flags)
        out_dims = tuple(0 if needed else None for needed in needs_grad)
        return tuple(
            grad.unflatten(0, (info.batch_size, -1)) if needed else grad for grad, needed in zip(grads, needs_grad)
        ), out_dims

    # --- operations, for torch.utils.flop_counter; it gives shapes for tensors ---------------------------------------

    def _flops(self, value, spatial_shapes, *points, out_shape=None):
        """Of each sample and channel five multiply-adds, four for the bilinear sample and one for its weight, and each
        counts as two operations (Deformable DETR, appendix A.1: 5 N_q K C)."""
        return 2 * 5 * math.prod(points[-1]) * value[-1]

    def _flops_backward(self, grad_output, value, spatial_shapes, *rest, out_shape=None):
        """Twice the forward's, as for a product: once for the value, once for what weighs it."""
        points, *_ = self._split(rest)
        return 2 * self._flops(value, spatial_shapes, *points)

    # --- the last arguments of the backward op -----------------------------------------------------------------------

    def flags(self, needs_grad_of_points: tuple[bool, ...]) -> tuple[bool, ...]:
        return *needs_grad_of_points[: self.optional_grads], torch.are_deterministic_algorithms_enabled()

    def _split(self, rest):
        """points and flags -> points, whether value and each of the points needs its gradient, flags."""
        count = len(rest) - self.optional_grads - 1
        points, flags = rest[:count], rest[count:]
        return points, (True, *flags[:-1], *[True] * (count - self.optional_grads)), flags

    @staticmethod
    def _drop_unasked(grads, needs_grad):
        return tuple(grad if needed else grad.new_empty(0) for grad, needed in zip(grads, needs_grad))


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, value, spatial_shapes, *points):
        ctx.op, ctx.spatial_shapes = op, spatial_shapes
        ctx.save_for_backward(value, *points)
        with below_autograd():
            return op.forward(value, spatial_shapes, *points)

    @staticmethod
    def backward(ctx, grad_output):
        value, *points = ctx.saved_tensors
        flags = ctx.op.flags(ctx.needs_input_grad[3:])
        grad_value, *grads = ctx.op.backward(grad_output, value, ctx.spatial_shapes, *points, *flags)
        return None, grad_value, None, *[g if needed else None for g, needed in zip(grads, ctx.needs_input_grad[3:])]


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, grad_output, value, spatial_shapes, *rest):
        points, ctx.needs_grad, ctx.flags = op._split(rest)
        ctx.op, ctx.spatial_shapes = op, spatial_shapes
        ctx.save_for_backward(grad_output, value, *points)
        with below_autograd():
            return op.backward(grad_output, value, spatial_shapes, *rest)

    @staticmethod
    def backward(ctx, *grads):
        inputs = ctx.saved_tensors
        grads = tuple(g if needed else torch.zeros_like(x) for g, x, needed in zip(grads, inputs[1:], ctx.needs_grad))
        grad_output, value, *points = torch.func.vjp(_vjp(ctx.op.differentiable, ctx.spatial_shapes), *inputs)[1](grads)
        return None, grad_output, value, None, *points, *[None] * len(ctx.flags)


def _vjp(attention: Callable[..., Tensor], spatial_shapes: list[int]) -> Callable[..., tuple[Tensor, ...]]:
    """The backward op of ``attention``, without its flags, as a function that can be differentiated again."""

    def backward(grad_output, *tensors):
        return torch.func.vjp(lambda value, *points: attention(value, pairs(spatial_shapes), *points), *tensors)[1](
            grad_output
        )

    return backward


def register_for_inference(
    name: str, check: Callable[..., Sequence[int]], reference: Callable[..., Tensor], flops: Callable[..., int]
):
    """Connect an op that has no gradient with its output's shape, the same in plain PyTorch, and its operations."""

    def kernel(*arguments):
        check(*arguments)
        warn_of_device(arguments[0].device.type)
        return reference(*arguments)

    def fake(*arguments):
        return arguments[0].new_empty(check(*arguments))

    LIBRARY.impl(name, kernel, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'mmdet_ddetr::{name}', fake, lib=LIBRARY)
    op = getattr(torch.ops.mmdet_ddetr, name)
    register_flop_formula(op)(lambda *arguments, out_shape=None: flops(*arguments))


@functools.cache
def has_compiled_kernel(name: str, device_type: str) -> bool:
    """Whether an op has a kernel of its own for a device; what plain PyTorch does for any device is none."""
    return has_own_kernel(f'mmdet_ddetr::{name}', device_type.upper())


def _fold(batch_size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Merge vmap's dimension into the batch."""
    moved = [
        tensor.expand(batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims)
    ]
    return [tensor.flatten(0, 1) for tensor in moved]


def _remedy(device_type: str) -> str:
    if device_type != 'cuda':
        return 'There are kernels for cpu and cuda.'
    return f'They need nvcc. {how_to_build(PACKAGE, sys.path, "FORCE_CUDA=1 ")}'


_warned: set[str] = set()


def warn_of_device(device_type: str):
    if EXTENSION_LOADED and device_type not in _warned:
        _warned.add(device_type)
        warnings.warn(
            f'mmdet_ddetr: the compiled ops have no kernel for {device_type}; plain PyTorch does their work, many '
            f'times slower. {_remedy(device_type)}',
            RuntimeWarning,
            stacklevel=2,
        )
