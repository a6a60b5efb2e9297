"""Batch norm that stays as it is, in a backbone that is trained."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet_ddetr.ops._private import beyond_first_order


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that keeps no input for the backward pass where it is a fixed scale and shift.

    It is one in eval mode with weights that are not trained, as in the backbones of the family, half of whose memory is
    what PyTorch keeps for it. In every other case, and in ``torch.compile``, PyTorch's.
    """

    def forward(self, input: Tensor) -> Tensor:  # [B, C, H, W]
        if not self._is_fixed() or torch.compiler.is_compiling() or torch.jit.is_tracing() or beyond_first_order():
            return super().forward(input)
        return _FixedBatchNorm.apply(input, self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    def _is_fixed(self) -> bool:
        if self.training or self.running_var is None or self.weight is None:
            return False
        return torch.is_grad_enabled() and not (self.weight.requires_grad or self.bias.requires_grad)


class _FixedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(weight * (var + eps).rsqrt())
        return F.batch_norm(input, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (scale,) = ctx.saved_tensors
        return (grad_output * scale[:, None, None]).to(grad_output.dtype), None, None, None, None, None


def replace_batch_norms(module: nn.Module) -> None:
    """Let the ``nn.BatchNorm2d`` in a module be ``BatchNorm2d``; they remain the objects that they are."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = BatchNorm2d
