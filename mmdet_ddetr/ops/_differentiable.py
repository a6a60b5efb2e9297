"""What PyTorch has to know about the ops of convolution and RoI pooling besides their kernels.

``_register.py`` does the same for attention, whose ops share their arguments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import FLOATS, compute_dtype
from ._private import below_autograd, beyond_first_order
from ._register import RegisteredOp, has_compiled_kernel, warn_of_device


@dataclass
class DifferentiableOp(RegisteredOp):
    """An op and the same in plain PyTorch; ``register()`` connects them.

    The op is ``name(*arguments) -> output`` with ``name_backward(grad_output, *arguments, *needs, deterministic) ->
    gradients``, one of each differentiable argument, with shape [0] for what was not asked for and for an absent
    argument. Derivatives of any order and in both modes, autocast, vmap and shapes follow.

    Attributes:
        name: the op's name in ``torch.ops.mmdet_ddetr``.
        check: the output's shape; raises where the arguments do not fit.
        check_grad: (grad_output, input, shape) raises where grad_output does not fit.
        reference: the op in plain PyTorch, from differentiable operations only.
        flops: of the forward, from the arguments with shapes for tensors.
        needs: which of the flags ``needs`` asks for the gradient of the argument with this number.
        narrow: (dtype, *arguments) -> arguments, for autocast, unless the first argument is fp64.
        axes: the dimension of the argument with this number that vmap lengthens.
        output_axis: the same of the output.
        enter: (size, *arguments) -> arguments, what vmap has to do besides.
    """

    name: str
    check: Callable[..., Sequence[int]]
    check_grad: Callable[..., None]
    reference: Callable[..., Tensor]
    flops: Callable[..., int]
    needs: dict[int, int]
    narrow: Callable[..., Sequence]
    axes: dict[int, int]
    output_axis: int
    enter: Callable[..., Sequence] = lambda size, *arguments: arguments

    # --- devices without a compiled kernel ---------------------------------------------------------------------------

    def _reference(self, *arguments):
        self.check(*arguments)
        warn_of_device(arguments[0].device.type)
        return self.reference(*arguments)

    # --- shapes ------------------------------------------------------------------------------------------------------

    def _fake(self, *arguments):
        return arguments[0].new_empty(self.check(*arguments))

    def _fake_backward(self, grad_output, *rest):
        arguments, flags = self._split(rest)
        self._check_backward(grad_output, arguments)
        return self._asked([t.new_empty(t.shape) for t in self._tensors(arguments)], arguments, flags)

    def _check_backward(self, grad_output, arguments):
        self.check_grad(grad_output, arguments[0], self.check(*arguments))

    # --- derivatives -------------------------------------------------------------------------------------------------

    def _autograd(self, *arguments):
        if beyond_first_order():
            self.check(*arguments)
            return self.reference(*arguments)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._tensors(arguments)):
            device = arguments[0].device.type
            if not has_compiled_kernel(self.name, device) and device != 'meta':  # meta has shapes alone, in both passes
                return self._reference(*arguments)  # PyTorch differentiates it
            return _Forward.apply(self, *arguments)
        with below_autograd():
            return self.forward(*arguments)

    def _autograd_backward(self, grad_output, *rest):
        if beyond_first_order():
            arguments, flags = self._split(rest)
            self._check_backward(grad_output, arguments)
            return self._asked(self._vjp(arguments)(grad_output, *self._tensors(arguments)), arguments, flags)
        if torch.is_grad_enabled():
            return _Backward.apply(self, grad_output, *rest)
        with below_autograd():
            return self.backward(grad_output, *rest)

    def _vjp(self, arguments: Sequence) -> Callable[..., tuple[Tensor, ...]]:
        """(grad_output, *tensors) -> gradients of ``tensors`` by differentiable operations."""

        def vjp(grad_output, *tensors):
            return torch.func.vjp(lambda *t: self.reference(*self._with(arguments, t)), *tensors)[1](grad_output)

        return vjp

    # --- autocast ----------------------------------------------------------------------------------------------------

    def _autocast(self, device_type):
        def kernel(*arguments):
            if arguments[0].dtype != torch.float64:
                arguments = self.narrow(torch.get_autocast_dtype(device_type), *arguments)
            with torch.autocast(device_type, enabled=False):  # the kernel below this one
                return self.forward(*arguments)

        return kernel

    # --- vmap --------------------------------------------------------------------------------------------------------

    def _fold(self, size: int, in_dims: Sequence[int | None], arguments: Sequence) -> Sequence:
        arguments = list(arguments)
        for i, axis in self.axes.items():
            arguments[i] = _fold(size, arguments[i], in_dims[i], axis)
        return self.enter(size, *arguments)

    def _vmap(self, info, in_dims, *arguments):
        size, axis = info.batch_size, self.output_axis
        return self.forward(*self._fold(size, in_dims, arguments)).unflatten(axis, (size, -1)), axis

    def _vmap_backward(self, info, in_dims, grad_output, *rest):
        size = info.batch_size
        grad_output = _fold(size, grad_output, in_dims[0], self.output_axis)
        arguments, flags = self._split(rest)
        grads = self.backward(grad_output, *self._fold(size, in_dims[1:], arguments), *flags)
        axes = [self.axes[i] if flags[flag] and arguments[i] is not None else None for i, flag in self.needs.items()]
        return tuple(
            grad if axis is None else grad.unflatten(axis, (size, -1)) for grad, axis in zip(grads, axes)
        ), tuple(axes)

    # --- operations, for torch.utils.flop_counter --------------------------------------------------------------------

    def _flops(self, *arguments, out_shape=None):
        return self.flops(*arguments)

    def _flops_backward(self, grad_output, *rest, out_shape=None):
        """Twice the forward's, as for a product: once for its left side, once for its right."""
        return 2 * self.flops(*self._split(rest)[0])

    # --- arguments ---------------------------------------------------------------------------------------------------

    def _split(self, rest: Sequence) -> tuple[Sequence, Sequence]:
        """Arguments of the backward op after grad_output -> those of the op, flags."""
        flags = max(self.needs.values()) + 2  # and determinism
        return rest[:-flags], rest[-flags:]

    def _tensors(self, arguments: Sequence) -> list[Tensor]:
        """Those that have a gradient, without an absent one."""
        return [arguments[i] for i in self.needs if arguments[i] is not None]

    def _with(self, arguments: Sequence, tensors: Sequence[Tensor]) -> Sequence:
        """``arguments`` with others for their ``_tensors``."""
        arguments, tensors = list(arguments), iter(tensors)
        for i in self.needs:
            if arguments[i] is not None:
                arguments[i] = next(tensors)
        return arguments

    def _asked(self, grads: Sequence[Tensor], arguments: Sequence, flags: Sequence[bool]) -> tuple[Tensor, ...]:
        """Gradients of ``_tensors`` -> what the backward op returns."""
        grads = iter(grads)
        found = [None if arguments[i] is None else next(grads) for i in self.needs]
        return tuple(
            grad if grad is not None and flags[flag] else arguments[0].new_empty(0)
            for grad, flag in zip(found, self.needs.values())
        )


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, *arguments):
        ctx.op = op
        _save(ctx, arguments)
        with below_autograd():
            return op.forward(*arguments)

    @staticmethod
    def backward(ctx, grad_output):
        op, arguments, needed = ctx.op, _saved(ctx), ctx.needs_input_grad[1:]
        flags = [any(needed[i] for i in op.needs if op.needs[i] == flag) for flag in range(max(op.needs.values()) + 1)]
        grads = op.backward(grad_output, *arguments, *flags, torch.are_deterministic_algorithms_enabled())
        grads = {i: grad for i, grad in zip(op.needs, grads) if needed[i]}
        return None, *[grads.get(i) for i in range(len(arguments))]


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, grad_output, *rest):
        ctx.op = op
        _save(ctx, (grad_output, *rest))
        with below_autograd():
            return op.backward(grad_output, *rest)

    @staticmethod
    def backward(ctx, *grads):
        op, (grad_output, *rest) = ctx.op, _saved(ctx)
        arguments, flags = op._split(rest)
        tensors, present = op._tensors(arguments), [i for i in op.needs if arguments[i] is not None]
        given = dict(zip(op.needs, grads))
        cotangents = tuple(given[i] if flags[op.needs[i]] else torch.zeros_like(t) for i, t in zip(present, tensors))
        grad_output, *grads = torch.func.vjp(op._vjp(arguments), grad_output, *tensors)[1](cotangents)
        grads = dict(zip(present, grads))
        return None, grad_output, *[grads.get(i) for i in range(len(rest))]


def _save(ctx, arguments: Sequence):
    """Tensors where autograd watches them, the others beside them."""
    ctx.others = [None if isinstance(argument, Tensor) else argument for argument in arguments]
    ctx.is_tensor = [isinstance(argument, Tensor) for argument in arguments]
    ctx.save_for_backward(*[argument for argument in arguments if isinstance(argument, Tensor)])


def _saved(ctx) -> list:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if is_tensor else other for is_tensor, other in zip(ctx.is_tensor, ctx.others)]


def _fold(size: int, tensor: Tensor | None, dim: int | None, axis: int) -> Tensor | None:
    """Merge vmap's dimension, of ``size`` examples, into dimension ``axis`` of an example; it comes first there."""
    if tensor is None:
        return None
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.movedim(0, axis).flatten(axis, axis + 1)


def as_points(input: Tensor, *points: Tensor | None) -> list[Tensor | None]:
    """What fixes positions in a dtype that the kernels take: as it is, or the one ``input`` is computed in."""
    compute = compute_dtype(input.dtype)
    as_it_is = (input.dtype, compute)
    return [t if t is None or t.dtype in as_it_is or t.dtype not in FLOATS else t.to(compute) for t in points]
