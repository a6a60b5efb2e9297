"""Sigmoid focal loss: the public function, and what PyTorch has to know about its ops besides their kernels."""

import torch
from torch import Tensor

from . import reference
from ._checks import check_focal_grad_output, check_sigmoid_focal_loss
from ._load import LIBRARY
from ._private import below_autograd, beyond_first_order
from ._register import has_compiled_kernel, warn_of_device

_NAME = 'sigmoid_focal_loss'
_OP = torch.ops.mmdet_ddetr.sigmoid_focal_loss.default
_BACKWARD_OP = torch.ops.mmdet_ddetr.sigmoid_focal_loss_backward.default


def sigmoid_focal_loss(
    logits: Tensor,  # [N, C]
    labels: Tensor,  # [N]
    alpha: float = 0.25,
    gamma: float = 2.0,
    sum_classes: bool = False,
) -> Tensor:  # [N, C], or [N] if sum_classes
    """Focal loss of every logit (RetinaNet, eq. 5), in one pass over the logits; so is its gradient.

    The loss is ``-a (1 - p)^gamma log(p)``, where p is the probability of the right answer: sigmoid(x) with
    ``a = alpha`` for the logit x of the row's label, sigmoid(-x) with ``a = 1 - alpha`` for all others. In log-sigmoid
    form, it and its gradient are finite for every finite logit. An infinite logit on the wrong side gives an infinite
    loss and a NaN gradient, NaN gives NaN. Differentiable any number of times and in both modes.

    Args:
        logits: fp64, fp32, fp16 or bf16.
        labels: int64; a label outside of 0..C-1 is background, for which every class is wrong.
        alpha: weight of the label's class in [0, 1]; 1 - alpha is that of the others.
        gamma: exponent >= 0; 0 is cross-entropy.
        sum_classes: return the sum over the classes, without ever writing the loss of each.

    Returns:
        The loss in fp32 whatever autocast is doing, in fp64 for fp64 logits. Bitwise the same for any number of CPU
        threads.

    Raises:
        RuntimeError: an argument's shape or dtype does not fit.
    """
    return _OP(logits, labels, alpha, gamma, sum_classes)


def _reference(logits, labels, alpha, gamma, sum_classes=False):
    check_sigmoid_focal_loss(logits, labels, gamma)
    warn_of_device(logits.device.type)
    return reference.sigmoid_focal_loss(logits, labels, alpha, gamma, sum_classes)


def _fake(logits, labels, alpha, gamma, sum_classes=False):
    check_sigmoid_focal_loss(logits, labels, gamma)
    shape = logits.shape[:1] if sum_classes else logits.shape
    return logits.new_empty(shape, dtype=torch.promote_types(logits.dtype, torch.float32))


def _fake_backward(grad_output, logits, labels, alpha, gamma):
    check_sigmoid_focal_loss(logits, labels, gamma)
    check_focal_grad_output(grad_output, logits)
    return logits.new_empty(logits.shape)


def _autograd(logits, labels, alpha, gamma, sum_classes=False):
    if beyond_first_order():
        check_sigmoid_focal_loss(logits, labels, gamma)
        return reference.sigmoid_focal_loss(logits, labels, alpha, gamma, sum_classes)
    if torch.is_grad_enabled() and logits.requires_grad:
        if not has_compiled_kernel(_NAME, logits.device.type):
            return _reference(logits, labels, alpha, gamma, sum_classes)  # PyTorch differentiates it
        return _SigmoidFocalLoss.apply(logits, labels, alpha, gamma, sum_classes)
    with below_autograd():
        return _OP(logits, labels, alpha, gamma, sum_classes)


class _SigmoidFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, *settings):
        ctx.settings = settings
        ctx.save_for_backward(logits, labels)
        with below_autograd():
            return _OP(logits, labels, *settings)

    @staticmethod
    def backward(ctx, grad_output):
        logits, labels = ctx.saved_tensors
        alpha, gamma, sum_classes = ctx.settings
        if torch.is_grad_enabled():  # the gradient is going to be differentiated in its turn
            loss = reference.sigmoid_focal_loss(logits, labels, alpha, gamma, sum_classes)
            (grad,) = torch.autograd.grad(loss, logits, grad_output, create_graph=True)
        else:
            grad = _BACKWARD_OP(grad_output, logits, labels, alpha, gamma)
        return grad, None, None, None, None


LIBRARY.impl(_NAME, _reference, 'CompositeExplicitAutograd')
LIBRARY.impl(_NAME, _autograd, 'Autograd')
torch.library.register_fake(f'mmdet_ddetr::{_NAME}', _fake, lib=LIBRARY)
torch.library.register_fake(f'mmdet_ddetr::{_NAME}_backward', _fake_backward, lib=LIBRARY)
