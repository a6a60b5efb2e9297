"""Gradients under the calling conventions of ``mmcv._ext``."""

import torch


def differentiate(function, grad_output, pairs):
    """Write the gradient of ``function`` by each of its arguments, ``pairs`` of (argument, target)."""
    inputs = [tensor.detach().requires_grad_() for tensor, _ in pairs]
    with torch.enable_grad():
        output = function(*inputs)
    gradients = torch.autograd.grad(output, inputs, grad_output.to(output.dtype))
    for (_, target), gradient in zip(pairs, gradients):
        target.copy_(gradient)
