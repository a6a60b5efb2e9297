from .boxes import inverse_sigmoid, refine_box
from .deformable_transformer import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
)
from .denoising import DenoisingQueries
from .dropout import Dropout
from .ffn import FFN
from .ms_deform_attn import MSDeformAttn
from .multihead_attention import MultiheadAttention
from .own_level_attn import OwnLevelDeformAttn
from .padding import is_padded, on_own_maps, padding_masks
from .positional import LearnedPositionalEncoding
from .query_groups import QueryGroups
from .transformer import DetrDecoder, DetrDecoderLayer, DetrEncoder, DetrEncoderLayer

__all__ = [
    'DeformableDecoder',
    'DeformableDecoderLayer',
    'DeformableEncoder',
    'DeformableEncoderLayer',
    'DenoisingQueries',
    'DetrDecoder',
    'DetrDecoderLayer',
    'DetrEncoder',
    'DetrEncoderLayer',
    'Dropout',
    'FFN',
    'LearnedPositionalEncoding',
    'MSDeformAttn',
    'MultiheadAttention',
    'OwnLevelDeformAttn',
    'QueryGroups',
    'inverse_sigmoid',
    'is_padded',
    'on_own_maps',
    'padding_masks',
    'refine_box',
]
