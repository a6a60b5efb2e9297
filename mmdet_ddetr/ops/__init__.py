from . import reference
from .deform_conv import deform_conv2d
from .linear_sum_assignment import linear_sum_assignment
from .ms_deform_attn import host_shapes, ms_deform_attn, ms_deform_attn_fused
from .sigmoid_focal_loss import sigmoid_focal_loss

__all__ = [
    'deform_conv2d',
    'host_shapes',
    'linear_sum_assignment',
    'ms_deform_attn',
    'ms_deform_attn_fused',
    'reference',
    'sigmoid_focal_loss',
]
