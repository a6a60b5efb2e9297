"""The product of every dense attention here: softmax over all keys, in whatever kernel PyTorch has for it."""

import torch.nn.functional as F
from torch import Tensor, nn


class DotProductAttention(nn.Module):
    """``softmax(q k^T / sqrt(D) + bias) v`` for each of M heads, without parameters.

    Args:
        num_heads: heads M.
        dropout: share of the weights that training drops.
    """

    def __init__(self, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)  # its p and mode; the kernel drops

    def forward(
        self,
        query: Tensor,  # [B, Q, M*D], the channels of one head after those of another
        key: Tensor,  # [B, S, M*D]
        value: Tensor,  # [B, S, M*E]
        key_padding_mask: Tensor | None = None,  # [B, S], True = padding
        attn_mask: Tensor | None = None,  # [Q, S], True = not seen
        bias: Tensor | None = None,  # [B, M or 1, Q, S], added to the products
    ) -> Tensor:  # [B, Q, M*E]
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        mask = attn_mask  # True = not seen; scaled_dot_product_attention wants the opposite
        if key_padding_mask is not None:
            padding = key_padding_mask[:, None, None]
            mask = padding if mask is None else mask | padding
        if bias is not None:
            bias = bias.to(q.dtype)
            mask = bias if mask is None else bias.masked_fill(mask, float('-inf'))
        elif mask is not None:
            mask = ~mask
        p = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, p).transpose(1, 2).flatten(2)
