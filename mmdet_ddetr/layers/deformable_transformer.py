"""The deformable transformer: stacks of encoder and decoder layers (Deformable DETR, section 4.2)."""

import torch
from torch import Tensor

from mmdet_ddetr.registry import MODELS

from .ms_deform_attn import MSDeformAttn
from .transformer import DetrDecoder, DetrDecoderLayer, DetrEncoder, DetrEncoderLayer


@MODELS.register_module()
class DeformableEncoderLayer(DetrEncoderLayer):
    """Deformable self-attention and FFN, each with residual and post-norm."""

    attention = MSDeformAttn


@MODELS.register_module()
class DeformableDecoderLayer(DetrDecoderLayer):
    """Self-attention among the queries, deformable cross-attention, FFN, each with residual and post-norm."""

    cross_attention = MSDeformAttn


@MODELS.register_module()
class DeformableEncoder(DetrEncoder):
    """Encoder over all levels: every pixel is a query with its own centre as reference."""

    layer = DeformableEncoderLayer

    def forward(
        self,
        query: Tensor,  # [B, S, C]
        query_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        valid_ratios: Tensor,  # [B, L, 2]
        **kwargs,
    ) -> Tensor:  # [B, S, C]
        return super().forward(
            query,
            query_pos,
            key_padding_mask,
            spatial_shapes=spatial_shapes,
            reference_points=self.reference_points(spatial_shapes, valid_ratios),
            **kwargs,
        )

    @staticmethod
    def reference_points(
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        valid_ratios: Tensor,  # [B, L, 2]
    ) -> Tensor:  # [B, S, L, 2]
        """Pixel centres in [0, 1] of the unpadded image, expressed in the padded map of each target level.

        Args:
            valid_ratios: (x, y) share of each level's map that is image, the rest being padding.
        """
        points = []
        for level, (H, W) in enumerate(spatial_shapes):
            ratio_x, ratio_y = valid_ratios[:, None, level].unbind(-1)  # [B, 1]
            x = (torch.arange(W, dtype=torch.float32, device=valid_ratios.device) + 0.5) / (ratio_x * W)
            y = (torch.arange(H, dtype=torch.float32, device=valid_ratios.device) + 0.5) / (ratio_y * H)
            points.append(torch.stack([x.repeat(1, H), y.repeat_interleave(W, 1)], -1))  # [B, H*W, 2]
        return torch.cat(points, 1)[:, :, None] * valid_ratios[:, None]


@MODELS.register_module()
class DeformableDecoder(DetrDecoder):
    """Decoder: object queries attend to each other, then to points around their references.

    Args:
        post_norm_cfg: as in ``DetrDecoder``, but Deformable DETR has none.
    """

    layer = DeformableDecoderLayer

    def __init__(self, *args, post_norm_cfg: dict | None = None, **kwargs):
        super().__init__(*args, post_norm_cfg=post_norm_cfg, **kwargs)

    def layer_inputs(
        self,
        index: int,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, 2 or 4]
        *,
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        valid_ratios: Tensor,  # [B, L, 2]
        **inputs,
    ) -> dict:
        """The references in the padded map of each level."""
        ratios = valid_ratios if reference_points.shape[-1] == 2 else valid_ratios.repeat(1, 1, 2)
        reference_points = reference_points[:, :, None] * ratios[:, None]
        return dict(inputs, reference_points=reference_points, spatial_shapes=spatial_shapes)
