"""Deformable attention without exchange between the levels (Deformable DETR, table 2)."""

import torch
from torch import Tensor

from mmdet_ddetr.ops import host_shapes
from mmdet_ddetr.registry import MODELS

from .ms_deform_attn import MSDeformAttn, spread


@MODELS.register_module()
class OwnLevelDeformAttn(MSDeformAttn):
    """Each cell of a multi-scale map looks at K points of its own level (table 2, "MS inputs" without "MS attention").

    The paper only names this variant, and no code of it was published. Here it is eq. 2, deformable attention on one
    map, for each level by itself: a softmax over the K points of the query's level, and one set of parameters for all
    levels, which the query's level embedding tells apart. It is meant for the encoder. Object queries belong to no
    level, so the decoder keeps ``MSDeformAttn``: only there the levels meet.

    Args:
        As ``MSDeformAttn``'s, without ``num_levels``: there may be any number of them.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, num_levels=1, **kwargs)

    def forward(
        self,
        query: Tensor,  # [B, S, C] (batch_first) or [S, B, C], so are all the others
        key: Tensor | None = None,  # unused; there for mmcv's call convention
        value: Tensor | None = None,  # [B, S, C]
        identity: Tensor | None = None,  # [B, S, C]
        query_pos: Tensor | None = None,  # [B, S, C]
        key_padding_mask: Tensor | None = None,  # [B, S], True = padding
        reference_points: Tensor | None = None,  # [B, S, L, 2 or 4]; 1 for B, S or L: the same for all
        spatial_shapes: Tensor | list[tuple[int, int]] | None = None,  # (H, W) per level
        **kwargs,
    ) -> Tensor:  # [B, S, C]
        """As ``MSDeformAttn.forward``, where the queries are the cells of all levels, in the order of ``value``.

        Raises:
            ValueError: if shapes do not fit together.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError('OwnLevelDeformAttn needs reference_points and spatial_shapes, one of them is None')
        shapes = host_shapes(spatial_shapes)
        sizes = [H * W for H, W in shapes]
        dim = 1 if self.batch_first else 0
        if sum(sizes) != query.shape[dim]:
            raise ValueError(
                f'query must hold a cell of each level after the other, {sum(sizes)} for {shapes}, '
                f'got {query.shape[dim]}'
            )

        B, S = query.shape[1 - dim], query.shape[dim]
        reference_points = spread(reference_points, (B, S, len(shapes)))

        def split(tensor, dim):
            return [None] * len(sizes) if tensor is None else tensor.split(sizes, dim)

        of_levels = zip(
            shapes,
            *(split(tensor, dim) for tensor in (query, value, identity, query_pos)),
            split(key_padding_mask, 1),
            (points[:, :, level : level + 1] for level, points in enumerate(split(reference_points, 1))),
        )
        attended = [
            super(OwnLevelDeformAttn, self).forward(
                query,
                value=value,
                identity=identity,
                query_pos=query_pos,
                key_padding_mask=mask,
                reference_points=points,
                spatial_shapes=[shape],
            )
            for shape, query, value, identity, query_pos, mask, points in of_levels
        ]
        return torch.cat(attended, dim)
