"""Conditional attention (Conditional DETR, Meng et al., ICCV 2021, section 3.3)."""

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS

from .attention_arguments import check_heads
from .dot_product_attention import DotProductAttention
from .dropout import Dropout


@MODELS.register_module()
class ConditionalAttention(BaseModule):
    """Attention with projections of its own for content and position.

    As self-attention, both are added, as in DETR. As cross-attention, they stand side by side in every head, so that
    the product is one of contents plus one of positions: the position of a query, ``ref_sine_embed``, looks for places,
    and its content for what is there. Takes the arguments and the state_dict of mmdet's.

    Args:
        embed_dims: channels C.
        num_heads: heads M.
        attn_drop: dropout of the weights.
        proj_drop: dropout of the output before the residual.
        cross_attn: whether the keys are another sequence than the queries.
        keep_query_pos: cross-attention only; also add ``query_pos`` to the contents in every layer. The decoder takes
            ``qpos_proj`` out of all layers but the first otherwise.
        batch_first: True; accepted for mmdet's configs.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        cross_attn: bool = False,
        keep_query_pos: bool = False,
        batch_first: bool = True,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        check_heads(self, embed_dims, num_heads, batch_first)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.cross_attn = cross_attn
        self.keep_query_pos = keep_query_pos
        self.qcontent_proj = nn.Linear(embed_dims, embed_dims)
        self.qpos_proj = nn.Linear(embed_dims, embed_dims)
        self.kcontent_proj = nn.Linear(embed_dims, embed_dims)
        self.kpos_proj = nn.Linear(embed_dims, embed_dims)
        self.v_proj = nn.Linear(embed_dims, embed_dims)
        if cross_attn:
            self.qpos_sine_proj = nn.Linear(embed_dims, embed_dims)
        self.out_proj = nn.Linear(embed_dims, embed_dims)
        nn.init.constant_(self.out_proj.bias, 0.0)
        self.attention = DotProductAttention(num_heads, attn_drop)
        self.proj_drop = Dropout(proj_drop)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        key: Tensor | None = None,  # [B, S, C]; None: the queries
        value: Tensor | None = None,  # [B, S, C]; None: the keys
        query_pos: Tensor | None = None,  # [B, Q, C]
        key_pos: Tensor | None = None,  # [B, S, C]; None: query_pos
        attn_mask: Tensor | None = None,  # [Q, S], True = not seen
        key_padding_mask: Tensor | None = None,  # [B, S], True = padding
        ref_sine_embed: Tensor | None = None,  # [B, Q, C], position of the reference; with cross_attn only
        **kwargs,
    ) -> Tensor:  # [B, Q, C]
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self.qcontent_proj(query), self.kcontent_proj(key), self.v_proj(value)
        k_pos = self.kpos_proj(query_pos if key_pos is None else key_pos)
        if self.qpos_proj is not None:
            q, k = q + self.qpos_proj(query_pos), k + k_pos
        if self.cross_attn:
            q, k = self._beside(q, self.qpos_sine_proj(ref_sine_embed)), self._beside(k, k_pos)
        output = self.attention(q, k, v, key_padding_mask, attn_mask)
        return query + self.proj_drop(self.out_proj(output))

    def _beside(self, content: Tensor, position: Tensor) -> Tensor:  # [B, Q, C] each -> [B, Q, 2C]
        """Content and position of each head, one after the other."""
        heads = (x.unflatten(-1, (self.num_heads, -1)) for x in (content, position))
        return torch.cat(tuple(heads), -1).flatten(2)
