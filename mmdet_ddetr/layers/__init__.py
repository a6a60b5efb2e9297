from .boxes import inverse_sigmoid, refine_box
from .ms_deform_attn import MSDeformAttn
from .multihead_attention import MultiheadAttention
from .transformer import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
)

__all__ = [
    'DeformableDecoder',
    'DeformableDecoderLayer',
    'DeformableEncoder',
    'DeformableEncoderLayer',
    'MSDeformAttn',
    'MultiheadAttention',
    'inverse_sigmoid',
    'refine_box',
]
