"""Deformable convolutions for ``mmcv._ext``: ``ops.deform_conv2d`` under mmcv's calling conventions.

Every function writes into tensors that the caller allocated; ``columns`` and ``ones`` are scratch space, unused here.
The backward functions sample anew, so that no samples are kept between the passes. ``geometry`` is what mmcv names:
kernel, stride, padding and dilation for height and width, ``group`` and ``deformable_group``.
"""

import torch

from mmdet_ddetr import ops
from mmdet_ddetr.compat.differentiate import differentiate


def deform_conv_forward(input, weight, offset, output, columns, ones, **geometry):
    """DCN into ``output [B, C_out, Ho, Wo]``; ``offset [B, deformable_group*kH*kW*2, Ho, Wo]``."""
    output.copy_(_dcn(input, offset, weight, **geometry))


def deform_conv_backward_input(input, offset, grad_output, grad_input, grad_offset, weight, columns, **geometry):
    """Gradients of DCN into ``grad_input`` and ``grad_offset``."""
    differentiate(
        lambda i, o: _dcn(i, o, weight, **geometry), grad_output, [(input, grad_input), (offset, grad_offset)]
    )


def deform_conv_backward_parameters(input, offset, grad_output, grad_weight, columns, ones, scale, **geometry):
    """``scale`` times the gradient of DCN into ``grad_weight``."""
    # A convolution is linear in its weight, so that the gradient is the same at any, zeros included.
    pairs = [(torch.zeros_like(grad_weight), grad_weight)]
    differentiate(lambda w: _dcn(input, offset, w, **geometry), scale * grad_output, pairs)


def modulated_deform_conv_forward(input, weight, bias, ones, offset, mask, output, columns, with_bias, **geometry):
    """DCNv2 into ``output``; as DCN, with ``mask [B, deformable_group*kernel_h*kernel_w, Ho, Wo]``."""
    output.copy_(_dcnv2(input, offset, weight, mask, bias if with_bias else None, **geometry))


def modulated_deform_conv_backward(
    input,
    weight,
    bias,
    ones,
    offset,
    mask,
    columns,
    grad_input,
    grad_weight,
    grad_bias,
    grad_offset,
    grad_mask,
    grad_output,
    with_bias,
    **geometry,
):
    """Gradients of DCNv2 into the five ``grad_*`` tensors."""
    if with_bias:
        grad_bias.copy_(grad_output.sum((0, 2, 3)))
    pairs = [(input, grad_input), (offset, grad_offset), (weight, grad_weight), (mask, grad_mask)]
    differentiate(lambda *tensors: _dcnv2(*tensors, None, **geometry), grad_output, pairs)


def _dcn(input, offset, weight, kH, kW, dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, im2col_step):
    _check_groups(input, offset, weight, group, deformable_group)
    return ops.deform_conv2d(input, offset, weight, None, (dH, dW), (padH, padW), (dilationH, dilationW))


def _dcnv2(
    input,
    offset,
    weight,
    mask,
    bias,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    group,
    deformable_group,
):
    _check_groups(input, offset, weight, group, deformable_group)
    geometry = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    return ops.deform_conv2d(input, offset, weight, bias, *geometry, mask)


def _check_groups(input, offset, weight, group, deformable_group):
    """``ops.deform_conv2d`` takes the groups from the shapes; mmcv names them, and they may differ."""
    if input.shape[1] != group * weight.shape[1]:
        raise ValueError(f'groups must be {input.shape[1] / weight.shape[1]:g} for this input and weight, got {group}')
    per_group = 2 * weight[0, 0].numel()
    if offset.shape[1] != deformable_group * per_group:
        raise ValueError(
            f'deform_groups must be {offset.shape[1] / per_group:g} for this offset, got {deformable_group}'
        )
