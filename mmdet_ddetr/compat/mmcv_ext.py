"""The stand-in for ``mmcv._ext``: mmcv's operators, for any device, by this package's ops or in plain PyTorch.

Loaded under the name ``mmcv._ext`` (see the package's ``__init__``), with the calling conventions of mmcv's C++: most
operators write into tensors that the caller allocated. mmcv's Python files call them and document their arguments; the
comments here say what is not obvious from there. What is not defined here raises when called.
"""

import sys

import numpy as np
import torch
from torch import nn

from mmdet_ddetr import ops
from mmdet_ddetr.compat.deform_conv import (  # noqa: F401
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from mmdet_ddetr.compat.deform_roi_pool import deform_roi_pool_backward, deform_roi_pool_forward  # noqa: F401
from mmdet_ddetr.compat.roi_align import roi_align_backward, roi_align_forward  # noqa: F401
from mmdet_ddetr.ops.nms import iou_with_first

_INSTALL = "pip uninstall -y mmcv-lite && pip install --no-build-isolation 'mmcv>=2.0.0,<2.2'"


def __getattr__(name):
    """Answer for every operator of mmcv that is missing here: its modules ask for theirs at import time."""
    if name.startswith('_'):  # Python's own names
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f'{_caller_in_mmcv() or name} needs {name}, a compiled operator of mmcv, for which mmdet_ddetr does not '
            f'stand in. A compiled mmcv has it; this builds one for torch {torch.__version__}, given a compiler and '
            f'about 20 minutes: {_INSTALL}'
        )

    missing.__name__ = missing.__qualname__ = name
    return missing


def _caller_in_mmcv():
    """Name of the function or module of mmcv.ops that was called from elsewhere, such as ``mmcv.ops.carafe.CARAFE``."""
    name, frame = None, sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get('__name__', '')
        if module.startswith('mmcv.ops.'):
            owner = frame.f_locals.get('self')
            name = f'{module}.{type(owner).__name__ if isinstance(owner, nn.Module) else frame.f_code.co_name}'
        frame = frame.f_back
    return name


def get_compiler_version():
    return 'n/a'


def get_compiling_cuda_version():
    return 'n/a'


# --- non-maximum suppression; soft-NMS is a loop in numpy over the kept boxes, each compared with all that remain ---


def nms(boxes, scores, iou_threshold, offset):
    """Indices of the kept boxes, highest score first.

    Args:
        boxes (Tensor): ``[N, 4]``, (x1, y1, x2, y2) in pixels.
        scores (Tensor): ``[N]``.
        iou_threshold (float): a box that overlaps a kept one by more is dropped.
        offset (int): 1 where x2 and y2 are the last pixel of the box, 0 where they are its edge.
    """
    order = scores.detach().argsort(descending=True, stable=True)
    boxes = boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32))
    return order[ops.nms_keep(boxes[order], iou_threshold, offset)]


def softnms(boxes, scores, dets, iou_threshold, sigma, min_score, method, offset):
    """Indices of the kept boxes in the order of their decayed scores; ``dets [N, 5]`` receives boxes and scores.

    A kept box lowers the scores of those that remain by a factor of (method) 0: zero above the threshold, 1: 1 - IoU
    above the threshold, 2: exp(-IoU^2 / sigma). A box whose score falls below ``min_score`` is dropped.
    """
    corners, scores = _corners_and_area(boxes, offset), _numpy(scores)
    rest = np.arange(len(scores))
    kept, kept_scores = [], []
    while rest.size:
        best = scores.argmax()
        swap = [best, 0]
        rest[[0, best]], scores[[0, best]], corners[:, [0, best]] = rest[swap], scores[swap], corners[:, swap]
        kept.append(rest[0])
        kept_scores.append(scores[0])
        iou = iou_with_first(corners, offset)
        if method == 2:
            factor = np.exp(-(iou**2) / sigma)
        else:
            factor = np.where(iou >= iou_threshold, 1 - iou if method == 1 else 0, 1)
        scores = scores * factor.astype(scores.dtype)
        remains = scores >= min_score
        remains[0] = False
        rest, scores, corners = rest[remains], scores[remains], corners[:, remains]
    kept = torch.tensor(np.array(kept, dtype=np.int64), device=boxes.device)
    dets[: len(kept), :4] = boxes[kept]
    dets[: len(kept), 4] = torch.tensor(np.array(kept_scores))
    return kept


def _numpy(tensor):
    """A copy, in fp32 or fp64."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).cpu().numpy().copy()


def _corners_and_area(boxes, offset):  # [N, 4] -> [5, N]
    x1, y1, x2, y2 = corners = _numpy(boxes).T
    return np.concatenate((corners, [(x2 - x1 + offset) * (y2 - y1 + offset)]))


# --- multi-scale deformable attention: this package's operator ---


def ms_deform_attn_forward(
    value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights, im2col_step
):
    """``ops.ms_deform_attn``; the levels follow each other, and there is no im2col buffer to divide."""
    return ops.ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value,
    value_spatial_shapes,
    value_level_start_index,
    sampling_locations,
    attention_weights,
    grad_output,
    grad_value,
    grad_sampling_loc,
    grad_attn_weight,
    im2col_step,
):
    """Gradients of ``ops.ms_deform_attn`` into the three ``grad_*`` tensors, shaped as what they belong to."""
    value, locations, weights = inputs = [
        x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = ops.ms_deform_attn(value, value_spatial_shapes, locations, weights)
    gradients = torch.autograd.grad(output, inputs, grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients):
        target.copy_(gradient)


# --- focal losses (RetinaNet, eq. 5); an empty weight means none ---


def sigmoid_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Loss of each logit ``[N, C]`` into ``output``; a target outside of [0, C) is background."""
    loss = ops.sigmoid_focal_loss(input, target, alpha, gamma)
    output.copy_(loss * _weight_of(target, weight))


def sigmoid_focal_loss_backward(input, target, weight, grad_input, gamma, alpha):
    """Derivative of each loss by its logit into ``grad_input [N, C]``."""
    logits = input.detach().requires_grad_()
    with torch.enable_grad():
        loss = (ops.sigmoid_focal_loss(logits, target, alpha, gamma) * _weight_of(target, weight)).sum()
    grad_input.copy_(torch.autograd.grad(loss, logits)[0])


def _weight_of(target, weight):
    return weight.index_select(0, target)[:, None] if weight.numel() else 1


def softmax_focal_loss_forward(softmax, target, weight, output, gamma, alpha):
    """Loss of each row of ``softmax [N, C]`` into ``output [N]``; a negative target has none."""
    p, log_p, row_weight = _softmax_terms(softmax, target, weight)
    output.copy_(-alpha * (1 - p) ** gamma * log_p * row_weight)


def softmax_focal_loss_backward(softmax, target, weight, buff, grad_input, gamma, alpha):
    """Derivative by the logits behind ``softmax`` into ``grad_input [N, C]``; ``buff [N]`` is mmcv's scratch space."""
    p, log_p, row_weight = _softmax_terms(softmax, target, weight)
    q = (1 - p).clamp(min=torch.finfo(p.dtype).tiny)  # q**(gamma - 1) would be infinite at p = 1
    buff.copy_(alpha * (gamma * q ** (gamma - 1) * p * log_p - (1 - p) ** gamma) * row_weight)
    positive = target[:, None] == torch.arange(softmax.shape[1], device=target.device)
    grad_input.copy_(buff[:, None] * (positive.to(softmax.dtype) - softmax))


def _softmax_terms(softmax, target, weight):
    label = target.clamp(min=0)
    p = softmax.gather(1, label[:, None])[:, 0].to(torch.promote_types(softmax.dtype, torch.float32))
    row_weight = weight.index_select(0, label) if weight.numel() else 1
    return p, p.clamp(min=torch.finfo(p.dtype).tiny).log(), row_weight * (target >= 0)
