"""The decoder of SAM-DETR (Zhang et al., CVPR 2022)."""

from torch import Tensor

from mmdet_ddetr.registry import MODELS

from .conditional_attn import ConditionalAttention
from .conditional_transformer import position_of
from .semantic_aligned_attn import SemanticAlignedAttention
from .transformer import DetrDecoder, DetrDecoderLayer


@MODELS.register_module()
class SAMDecoderLayer(DetrDecoderLayer):
    """Conditional self-attention, semantic-aligned cross-attention, FFN, each with residual and post-norm."""

    self_attention = ConditionalAttention
    cross_attention = SemanticAlignedAttention


@MODELS.register_module()
class SAMDecoder(DetrDecoder):
    """Decoder whose queries are boxes, out of which every layer takes new queries.

    Each layer reads one map. On several levels, the first layers read the coarsest and the last the finest, as many
    layers each as there are for a level.

    Args:
        post_norm_cfg: as in ``DetrDecoder``, but SAM-DETR has none.
    """

    layer = SAMDecoderLayer

    def __init__(self, *args, post_norm_cfg: dict | None = None, **kwargs):
        super().__init__(*args, post_norm_cfg=post_norm_cfg, **kwargs)

    def layer_inputs(
        self,
        index: int,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, 4]
        *,
        value: Tensor,  # [B, S, C]
        key_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        valid_ratios: Tensor,  # [B, L, 2]
        **inputs,
    ) -> dict:
        """The level of the layer, and positions of the queries, of which each is the centre of its box."""
        level = self.level_of(index, len(spatial_shapes))
        sizes = [H * W for H, W in spatial_shapes]
        position = position_of(reference_points[..., :2].detach(), self.embed_dims)  # detached: see SemanticsAligner
        return dict(
            inputs,
            query_pos=position.to(query.dtype),
            reference_points=reference_points,
            value=value.split(sizes, 1)[level],
            key_pos=key_pos.split(sizes, 1)[level],
            key_padding_mask=None if key_padding_mask is None else key_padding_mask.split(sizes, 1)[level],
            spatial_shapes=[spatial_shapes[level]],
            valid_ratios=valid_ratios[:, level : level + 1],
        )

    def level_of(self, index: int, num_levels: int) -> int:
        """The level, 0 the finest, that layer ``index`` reads."""
        return num_levels - 1 - index * num_levels // self.num_layers
