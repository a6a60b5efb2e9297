from . import reference
from .deform_conv import deform_conv2d
from .ms_deform_attn import host_shapes, ms_deform_attn, ms_deform_attn_fused

__all__ = ['deform_conv2d', 'host_shapes', 'ms_deform_attn', 'ms_deform_attn_fused', 'reference']
