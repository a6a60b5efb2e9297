from . import reference
from .ms_deform_attn import host_shapes, ms_deform_attn, ms_deform_attn_fused

__all__ = ['host_shapes', 'ms_deform_attn', 'ms_deform_attn_fused', 'reference']
