"""Dropout without a stored mask: the public function, and what PyTorch has to know about its op besides the kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_dropout
from ._load import LIBRARY
from ._private import beyond_first_order
from ._register import has_compiled_kernel

_NAME = 'mmdet_ddetr::dropout'
_OP = torch.ops.mmdet_ddetr.dropout.default


def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero every element with probability p and divide the others by 1 - p (Hinton et al., arXiv:1207.0580).

    On the CPU, whether an element stays follows from its index and a 64-bit seed. The seed is all that is kept for the
    backward pass, which finds the same elements again; it can be differentiated any number of times. Without a compiled
    kernel for the device, inside ``torch.compile``, under forward-mode differentiation and torch.func, this is
    ``torch.nn.functional.dropout``.

    Args:
        input: any shape, fp64, fp32, fp16 or bf16.
        p: probability of a zero, in [0, 1].
        training: False gives ``input`` back.

    Returns:
        A tensor like ``input``, contiguous; what is dropped is 0 even where it was not finite. The seed comes from
        PyTorch's default CPU generator: the same after ``torch.manual_seed``, and for any number of CPU threads.

    Raises:
        ValueError: p is outside of [0, 1].
        RuntimeError: input has another dtype.
    """
    if not 0 <= p <= 1:
        raise ValueError(f'p must be in [0, 1], got {p}')
    if not training or p == 0:
        return input
    return _OP(input, p, _new_seed()) if _has_kernel(input) else F.dropout(input, p)


def dropout_matmul(
    weights: Tensor,  # [..., Q, S]
    value: Tensor,  # [..., S, D]
    p: float,
) -> Tensor:  # [..., Q, D]
    """``dropout(weights, p) @ value``, which keeps the weights for the backward pass, but not what is left of them.

    Args:
        weights, value: of the same leading dimensions and dtype.
        p: probability of a zero, in [0, 1].
    """
    if p == 0 or not _has_kernel(weights):
        return dropout(weights, p) @ value
    device = weights.device.type
    if torch.is_autocast_enabled(device) and weights.dtype != torch.float64:  # for the backward pass, too
        weights, value = (x.to(torch.get_autocast_dtype(device)) for x in (weights, value))
    return _DropoutMatmul.apply(weights, value, p, _new_seed())


class _DropoutMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights: Tensor, value: Tensor, p: float, seed: Tensor) -> Tensor:
        ctx.save_for_backward(weights, value, seed)
        ctx.p = p
        return _OP(weights, p, seed) @ value

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        weights, value, seed = ctx.saved_tensors
        grad_weights = _OP(grad_output @ value.mT, ctx.p, seed)
        return grad_weights, _OP(weights, ctx.p, seed).mT @ grad_output, None, None


def _has_kernel(input: Tensor) -> bool:
    if torch.compiler.is_compiling() or beyond_first_order():
        return False
    return has_compiled_kernel('dropout', input.device.type)


def _new_seed() -> Tensor:
    return torch.randint(2**63 - 1, (), device='cpu')


def _fake(input, p, seed):
    check_dropout(input, p, seed)
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    _, ctx.p, seed = inputs
    ctx.save_for_backward(seed)


def _backward(ctx, grad_output):
    return _OP(grad_output, ctx.p, *ctx.saved_tensors), None, None


torch.library.register_fake(_NAME, _fake, lib=LIBRARY)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context, lib=LIBRARY)
