"""Deformable RoI pooling for ``mmcv._ext``: ``ops.deform_roi_pool`` under mmcv's calling conventions.

``geometry`` is what mmcv names: pooled_height, pooled_width, spatial_scale, sampling_ratio and gamma. An offset without
elements is none.
"""

from mmdet_ddetr import ops
from mmdet_ddetr.compat.differentiate import differentiate


def deform_roi_pool_forward(input, rois, offset, output, **geometry):
    """Pool ``rois [R, 5]`` into ``output [R, C, pooled_height, pooled_width]``, bins moved by ``offset``."""
    output.copy_(_pool(input, rois, offset if offset.numel() else None, **geometry))


def deform_roi_pool_backward(grad_output, input, rois, offset, grad_input, grad_offset, **geometry):
    """Gradients into ``grad_input`` and ``grad_offset``, which are shaped as what they belong to."""
    if offset.numel():
        pairs = [(input, grad_input), (offset, grad_offset)]
        differentiate(lambda i, o: _pool(i, rois, o, **geometry), grad_output, pairs)
    else:
        differentiate(lambda i: _pool(i, rois, None, **geometry), grad_output, [(input, grad_input)])


def _pool(input, rois, offset, pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma):
    return ops.deform_roi_pool(input, rois, offset, (pooled_height, pooled_width), spatial_scale, sampling_ratio, gamma)
