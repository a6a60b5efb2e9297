"""Row-column decoupled attention (Anchor DETR, Wang et al., AAAI 2022, arXiv:2109.07107, section 3.3)."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS

from .attention_arguments import check_heads
from .dropout import Dropout
from .row_column_product import RowColumnProduct


@MODELS.register_module()
class RCDA(BaseModule):
    """Attention over a feature map as the product of one over its columns, x, and one over its rows, y.

    The key of a column is the mean of the column's cells, that of a row the mean of the row's. A map of H x W cells
    then costs H + W logits a query instead of H * W, and memory of the order of the map (``RowColumnProduct``).

    It goes where dense attention goes, as self-attention of an encoder and as cross-attention of a decoder, in
    detectors whose one feature map's shape reaches it as ``spatial_shapes``: DETR and those that build on it. In
    AnchorDETR the axes have positions of their own; elsewhere both get ``query_pos`` and ``key_pos``.

    Args:
        embed_dims: channels C.
        num_heads: heads M.
        proj_drop: dropout of the output before the residual.
        mean_over_padding: let padded cells of a batch count in the means, as in the official code, whose results
            therefore depend on what an image is batched with (its issues 2 and 40). The published weights need no
            padding in the means: they were trained with one image a GPU, where there is none.
        batch_first: True; accepted for mmdet's configs.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        proj_drop: float = 0.0,
        mean_over_padding: bool = False,
        batch_first: bool = True,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        check_heads(self, embed_dims, num_heads, batch_first)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.mean_over_padding = mean_over_padding
        # query x, query y, key x, key y, value, one below the other
        self.in_proj_weight = nn.Parameter(torch.empty(5 * embed_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(5 * embed_dims))
        self.out_proj = nn.Linear(embed_dims, embed_dims)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)
        self.attention = RowColumnProduct(num_heads)
        self.proj_drop = Dropout(proj_drop)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        key: Tensor | None = None,  # [B, H*W, C]; None: the queries, which are the map's cells
        value: Tensor | None = None,  # [B, H*W, C]; None: the keys
        query_pos: Tensor | None = None,  # [B, Q, C]
        key_pos: Tensor | None = None,  # [B, H*W, C]; None with the queries as keys: query_pos
        query_pos_x: Tensor | None = None,  # [B, Q, C], in place of query_pos along x
        query_pos_y: Tensor | None = None,  # [B, Q, C], in place of query_pos along y
        key_pos_x: Tensor | None = None,  # [B, W, C], in place of key_pos; of the queries, too, if they are the keys
        key_pos_y: Tensor | None = None,  # [B, H, C], in place of key_pos; of the queries, too, if they are the keys
        key_padding_mask: Tensor | None = None,  # [B, H*W], True = padding, right of and below the image
        spatial_shapes: list[tuple[int, int]] | None = None,  # [(H, W)]
        **kwargs,
    ) -> Tensor:  # [B, Q, C]
        if spatial_shapes is None or len(spatial_shapes) != 1:
            raise ValueError(
                f'spatial_shapes must be the (H, W) of one feature map, got {spatial_shapes}: RCDA attends to one map '
                'of a detector that tells its shape, as DETR and AnchorDETR do'
            )
        (shape,) = spatial_shapes
        is_self, by_axis = key is None, key_pos_x is not None
        if is_self and by_axis:
            query_pos_x, query_pos_y = _on_map(key_pos_x, key_pos_y)
        elif query_pos_x is None:
            query_pos_x = query_pos_y = query_pos
        key = query if is_self else key
        value = key if value is None else value
        if not by_axis:
            key_pos = query_pos if is_self and key_pos is None else key_pos
            key = _plus(key, key_pos)
            key_pos_x = key_pos_y = None
        padding_x = padding_y = None
        if key_padding_mask is not None:
            padding = key_padding_mask.unflatten(1, shape)
            padding_x, padding_y = padding[:, 0], padding[:, :, 0]  # of a rectangle
        maps = key.unflatten(1, shape)
        seen_x, seen_y = (None, None) if self.mean_over_padding else (padding_x, padding_y)
        inputs = (
            _plus(query, query_pos_x),
            _plus(query, query_pos_y),
            _plus(_mean(maps, seen_y, 1), key_pos_x),
            _plus(_mean(maps, seen_x, 2), key_pos_y),
            value,
        )
        *vectors, value = map(F.linear, inputs, self.in_proj_weight.chunk(5), self.in_proj_bias.chunk(5))
        output = self.attention(*vectors, value.unflatten(1, shape), padding_x, padding_y)
        return query + self.proj_drop(self.out_proj(output))


def _on_map(pos_x: Tensor, pos_y: Tensor) -> tuple[Tensor, Tensor]:  # [B, W, C], [B, H, C] -> [B, H*W, C] each
    H, W = pos_y.shape[1], pos_x.shape[1]
    return pos_x.repeat(1, H, 1), pos_y.repeat_interleave(W, 1)


def _plus(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else x + position


def _mean(maps: Tensor, padding: Tensor | None, axis: int) -> Tensor:
    """Mean of [B, H, W, C] over the axis 1 or 2, without its padding [B, H or W]."""
    if padding is None:
        return maps.mean(axis)
    share = (~padding).to(maps.dtype)
    share = (share / share.sum(1, keepdim=True)).unsqueeze(3 - axis).unsqueeze(3)
    return (maps * share).sum(axis)
