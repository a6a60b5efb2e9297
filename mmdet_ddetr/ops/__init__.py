from . import reference
from ._register import has_compiled_kernel
from .deform_conv import deform_conv2d
from .deform_roi_pool import deform_ps_roi_pool, deform_roi_pool
from .depthwise_conv import depthwise_conv2d
from .dropout import dropout, dropout_matmul
from .linear_sum_assignment import linear_sum_assignment
from .matching_cost import matching_cost
from .ms_deform_attn import host_shapes, ms_deform_attn, ms_deform_attn_fused
from .nms import nms_keep
from .sigmoid_focal_loss import sigmoid_focal_loss

__all__ = [
    'deform_conv2d',
    'deform_ps_roi_pool',
    'deform_roi_pool',
    'depthwise_conv2d',
    'dropout',
    'dropout_matmul',
    'has_compiled_kernel',
    'host_shapes',
    'linear_sum_assignment',
    'matching_cost',
    'ms_deform_attn',
    'ms_deform_attn_fused',
    'nms_keep',
    'reference',
    'sigmoid_focal_loss',
]
