"""Multi-scale deformable attention (Deformable DETR, section 4.1)."""

import math

import torch
from mmengine.model import BaseModule, constant_init, xavier_init
from torch import Tensor, nn

from mmdet_ddetr.ops import host_shapes, ms_deform_attn_fused
from mmdet_ddetr.registry import MODELS

from .dropout import Dropout


@MODELS.register_module()
class MSDeformAttn(BaseModule):
    """Each query looks at K sampled points per level and head around its reference.

    Arguments, state_dict and forward are those of mmcv's ``MultiScaleDeformableAttention``.

    Args:
        embed_dims: channels C of query and value.
        num_heads: heads M; must divide ``int(embed_dims * value_proj_ratio)``.
        num_levels: feature levels L.
        num_points: points K per head and level.
        im2col_step: accepted for mmcv's configs; this op has no such restriction and ignores it.
        dropout: dropout on the output before the residual.
        batch_first: True for [B, Q, C] tensors, False for [Q, B, C].
        norm_cfg: accepted for mmcv's configs, where it is unused too.
        value_proj_ratio: width of the value projection relative to ``embed_dims``.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
        value_proj_ratio: float = 1.0,
    ):
        super().__init__(init_cfg)
        value_dims = int(embed_dims * value_proj_ratio)
        if embed_dims % num_heads or value_dims % num_heads:
            raise ValueError(
                f'embed_dims and embed_dims * value_proj_ratio must be divisible by num_heads, '
                f'got {embed_dims=}, {value_proj_ratio=}, {num_heads=}'
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.batch_first = batch_first
        self.dropout = Dropout(dropout)
        self.sampling_offsets = nn.Linear(embed_dims, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dims, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dims, value_dims)
        self.output_proj = nn.Linear(value_dims, embed_dims)
        self.init_weights()

    def init_weights(self) -> None:
        """Head m starts in direction 2*pi*m/M, point k at k + 1 cells, all weights equal (paper, appendix A.4)."""
        constant_init(self.sampling_offsets, 0.0)
        theta = torch.arange(self.num_heads, dtype=torch.float32) * (2.0 * math.pi / self.num_heads)
        direction = torch.stack([theta.cos(), theta.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True)[0]  # on the unit square, not the unit circle
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None, :] * steps[:, None]  # [M, 1, K, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        constant_init(self.attention_weights, 0.0)
        xavier_init(self.value_proj, distribution='uniform')
        xavier_init(self.output_proj, distribution='uniform')
        self._is_init = True

    def forward(
        self,
        query: Tensor,  # [B, Q, C] (batch_first) or [Q, B, C], so are all the others
        key: Tensor | None = None,  # unused; there for mmcv's call convention
        value: Tensor | None = None,  # [B, S, C]
        identity: Tensor | None = None,  # [B, Q, C]
        query_pos: Tensor | None = None,  # [B, Q, C]
        key_padding_mask: Tensor | None = None,  # [B, S], True = padding
        reference_points: Tensor | None = None,  # [B, Q, L, 2 or 4]; 1 for B, Q or L: the same for all
        spatial_shapes: Tensor | list[tuple[int, int]] | None = None,  # (H, W) per level
        level_start_index: Tensor | None = None,  # unused: follows from spatial_shapes
        **kwargs,
    ) -> Tensor:  # [B, Q, C]
        """Attend and add the residual.

        Args:
            value: features to sample from, all levels concatenated; None: the query itself.
            identity: what the residual adds; None: ``query`` before its position is added.
            reference_points: (cx, cy) or (cx, cy, w, h) per level, normalised by the padded map of that level.
            spatial_shapes: (H, W) of each level; Python ints cost no device sync.

        Raises:
            ValueError: if shapes do not fit together.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError('MSDeformAttn needs reference_points and spatial_shapes, one of them is None')
        value = query if value is None else value
        identity = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        B, Q, _ = query.shape
        S = value.shape[1]
        M, L, K = self.num_heads, self.num_levels, self.num_points
        shapes = host_shapes(spatial_shapes)
        if len(shapes) != L or sum(H * W for H, W in shapes) != S:
            raise ValueError(
                f'spatial_shapes must name num_levels={L} maps with {S} cells in all (value), got {shapes}'
            )

        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        output = ms_deform_attn_fused(
            value.view(B, S, M, -1),
            shapes,
            spread(reference_points, (B, Q, L)),
            self.sampling_offsets(query).view(B, Q, M, L, K, 2),
            self.attention_weights(query).view(B, Q, M, L * K),
        )
        output = self.output_proj(output)
        if not self.batch_first:
            output = output.transpose(0, 1)
        return self.dropout(output) + identity


def spread(reference_points: Tensor, size: tuple[int, int, int]) -> Tensor:  # [B, Q, L, 2 or 4]
    """Reference points for size = (B, Q, L), where any of the three may be 1, as mmcv's module broadcasts them.

    Raises:
        ValueError: they do not broadcast to that.
    """
    shape = reference_points.shape
    if len(shape) != 4 or any(have != 1 and have != want for have, want in zip(shape, size)):
        raise ValueError(
            f'reference_points must be [B, Q, L, 2 or 4] = [{", ".join(map(str, size))}, 2 or 4], or 1 in place of B, '
            f'Q or L, got {list(shape)}'
        )
    return reference_points.expand(*size, -1)
