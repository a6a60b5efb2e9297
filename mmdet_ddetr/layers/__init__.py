from .anchor_queries import FixedCentres, at_every_place
from .boxes import inverse_sigmoid, refine_box, shift_box
from .conditional_attn import ConditionalAttention
from .conditional_transformer import ConditionalDecoder, ConditionalDecoderLayer
from .conv_exchange import ConvExchange
from .dab_transformer import DABDecoder, DABDeformableDecoder, DABEncoder
from .deform_conv import DCN, DCNv2
from .deform_roi_pool import (
    DeformPSRoIPool,
    DeformPSRoIPoolPack,
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
)
from .deformable_transformer import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
)
from .denoising import DenoisingQueries, with_indicator
from .dot_product_attention import DotProductAttention
from .dropout import Dropout
from .duplicates import matrix_nms
from .ffn import FFN
from .gaussian import log_gaussian
from .ms_deform_attn import MSDeformAttn
from .multihead_attention import MultiheadAttention
from .own_level_attn import OwnLevelDeformAttn
from .own_maps import on_own_maps, own_masks, own_sizes_in_cells, shapes_on_own_maps
from .padding import ImageSizes, is_padded, joined_mask, padding_masks, sizes_in_cells
from .positional import LearnedPositionalEncoding, sine_embedding
from .query_groups import QueryGroups
from .roi_align import roi_align
from .roi_extractor import SingleRoIExtractor
from .row_column_attn import RCDA
from .row_column_product import RowColumnProduct
from .sam_transformer import SAMDecoder, SAMDecoderLayer
from .semantic_aligned_attn import SemanticAlignedAttention, SemanticsAligner
from .smca_attn import SpatiallyModulatedAttention
from .smca_transformer import (
    ConvEncoder,
    ConvEncoderLayer,
    OwnLevelAttention,
    SMCADecoder,
    SMCADecoderLayer,
    SMCAEncoder,
    SMCAEncoderLayer,
)
from .transformer import DetrDecoder, DetrDecoderLayer, DetrEncoder, DetrEncoderLayer

__all__ = [
    'DCN',
    'DCNv2',
    'ConditionalAttention',
    'ConditionalDecoder',
    'ConditionalDecoderLayer',
    'ConvEncoder',
    'ConvEncoderLayer',
    'ConvExchange',
    'DABDecoder',
    'DABDeformableDecoder',
    'DABEncoder',
    'DeformPSRoIPool',
    'DeformPSRoIPoolPack',
    'DeformRoIPool',
    'DeformRoIPoolPack',
    'DeformableDecoder',
    'DeformableDecoderLayer',
    'DeformableEncoder',
    'DeformableEncoderLayer',
    'DenoisingQueries',
    'DetrDecoder',
    'DetrDecoderLayer',
    'DetrEncoder',
    'DetrEncoderLayer',
    'DotProductAttention',
    'Dropout',
    'FFN',
    'ImageSizes',
    'FixedCentres',
    'LearnedPositionalEncoding',
    'MSDeformAttn',
    'ModulatedDeformRoIPoolPack',
    'MultiheadAttention',
    'OwnLevelAttention',
    'OwnLevelDeformAttn',
    'QueryGroups',
    'RCDA',
    'RowColumnProduct',
    'SAMDecoder',
    'SAMDecoderLayer',
    'SemanticAlignedAttention',
    'SemanticsAligner',
    'SMCADecoder',
    'SMCADecoderLayer',
    'SMCAEncoder',
    'SMCAEncoderLayer',
    'SingleRoIExtractor',
    'SpatiallyModulatedAttention',
    'at_every_place',
    'inverse_sigmoid',
    'is_padded',
    'joined_mask',
    'log_gaussian',
    'matrix_nms',
    'on_own_maps',
    'own_masks',
    'own_sizes_in_cells',
    'padding_masks',
    'refine_box',
    'shift_box',
    'roi_align',
    'shapes_on_own_maps',
    'sine_embedding',
    'sizes_in_cells',
    'with_indicator',
]
