"""Spatially modulated co-attention (SMCA, Gao et al., ICCV 2021, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS

from .attention_arguments import check_heads
from .gaussian import log_gaussian
from .multihead_attention import MultiheadAttention

FACTORS = dict(type1=0, type2=1, type3=2, type4=3)  # of the distances, per head and level


@MODELS.register_module()
class SpatiallyModulatedAttention(MultiheadAttention):
    """Cross-attention whose heads each look around a point: ``softmax(q k^T / sqrt(D) + log G) v``.

    A head's Gaussian ``G`` lies at the query's reference point plus an offset of its own. On several levels, each has
    its softmax, and weights of the query, another softmax, say how much of each level is taken (eq. 7 to 9).

    Args:
        embed_dims: channels C.
        num_heads: heads M.
        num_levels: maps L that the keys are of.
        scale_type: what multiplies the squared distances to the point, per query and head: nothing (``'type1'``), one
            factor for both axes (``'type2'``), one for each (``'type3'``, the paper's), or these and one for the
            product of both distances (``'type4'``).
        smooth: what divides them; one for each level, or one for all. The official codes have 8 at stride 32, and twice
            as much at half the stride.
        **kwargs: as ``MultiheadAttention``'s.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_levels: int = 1,
        scale_type: str = 'type3',
        smooth: float | Sequence[float] = 8.0,
        batch_first: bool = True,
        **kwargs,
    ):
        check_heads(self, embed_dims, num_heads, batch_first)
        if scale_type not in FACTORS:
            raise ValueError(f'scale_type must be one of {", ".join(FACTORS)}, got {scale_type!r}')
        smooth = [smooth] * num_levels if isinstance(smooth, int | float) else list(smooth)
        if len(smooth) != num_levels or min(smooth) <= 0:
            raise ValueError(f'smooth must be a positive number, or one for each of {num_levels=}, got {smooth}')
        super().__init__(embed_dims, num_heads, batch_first=True, **kwargs)
        self.num_levels = num_levels
        self.smooth = smooth
        self.offsets = nn.Linear(embed_dims, num_levels * num_heads * 2)
        factors = FACTORS[scale_type]
        self.scales = nn.Linear(embed_dims, num_levels * num_heads * factors) if factors else None
        self.level_logits = nn.Linear(embed_dims, num_levels) if num_levels > 1 else None
        self.init_weights()

    def init_weights(self) -> None:
        """All distances count once at the start (official code)."""
        if self.scales is not None:
            nn.init.zeros_(self.scales.weight)
            nn.init.ones_(self.scales.bias)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        key: Tensor,  # [B, S, C], cells of all levels
        value: Tensor,  # [B, S, C]
        query_pos: Tensor,  # [B, Q, C]
        key_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        reference_points: Tensor,  # [B, Q, 2]
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        map_sizes: Tensor,  # [B or 1, L, 2]
        place: Tensor | None = None,  # [B, Q, C]
        **kwargs,
    ) -> Tensor:  # [B, Q, C]
        """Attend, and add the queries.

        Args:
            reference_points: (x, y) in [0, 1], normalised by the unpadded image.
            map_sizes: (width, height) of the unpadded image in cells of each level.
            place: what offsets, scales and weights of levels follow from; None: the query with its position.

        Raises:
            ValueError: there are other levels than ``num_levels``.
        """
        place = query + query_pos if place is None else place
        gaussians = self.log_gaussians(place, reference_points, spatial_shapes, map_sizes)
        q, k, v = self.project(query + query_pos, key + key_pos, value)
        sizes = [H * W for H, W in spatial_shapes]
        masks = [None] * len(sizes) if key_padding_mask is None else key_padding_mask.split(sizes, 1)
        of_levels = zip(k.split(sizes, 1), v.split(sizes, 1), masks, gaussians)
        found = [self.attention(q, keys, values, mask, bias=bias) for keys, values, mask, bias in of_levels]
        if self.level_logits is None:
            output = found[0]
        else:
            weights = self.level_weights(place).to(found[0].dtype)
            output = (torch.stack(found, 2) * weights[..., None]).sum(2)
        return query + self.dropout_layer(self.proj_drop(self.attn.out_proj(output)))

    def log_gaussians(
        self,
        place: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, 2]
        spatial_shapes: list[tuple[int, int]],
        map_sizes: Tensor,  # [B or 1, L, 2]
    ) -> list[Tensor]:  # [B, M, Q, H*W] per level
        """The bias of each level's cells."""
        L, M = self.num_levels, self.num_heads
        if len(spatial_shapes) != L:
            raise ValueError(f'spatial_shapes must be those of {L} levels, num_levels, got {spatial_shapes}')
        offsets = self.offsets(place).unflatten(-1, (L, M, 2))  # [B, Q, L, M, 2]
        centres = (reference_points[:, :, None] * map_sizes[:, None])[:, :, :, None] + offsets
        if self.scales is None:
            scales = [None] * L
        else:
            scales = self.scales(place).unflatten(-1, (L, M, -1)).unbind(2)
        of_levels = zip(centres.unbind(2), scales, spatial_shapes, self.smooth)
        return [log_gaussian(*level) for level in of_levels]

    def level_weights(self, place: Tensor) -> Tensor:  # [B, Q, C] -> [B, Q, L]
        """The share of each level, of every image by itself."""
        return self.level_logits(place).float().softmax(-1)
