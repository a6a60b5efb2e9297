"""The product of every dense attention here: softmax over all keys, in whatever kernel PyTorch has for it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet_ddetr.ops import dropout_matmul


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
        key: Tensor,  # [B, S, M*D], or [B, S, D], the same for all heads
        value: Tensor,  # [B, S, M*E]
        key_padding_mask: Tensor | None = None,  # [B, S], True = padding
        attn_mask: Tensor | None = None,  # [Q, S], True = not seen
        bias: Tensor | None = None,  # [B, M or 1, Q, S], added to the products
    ) -> Tensor:  # [B, Q, M*E]
        q, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, value))
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
        if key.shape[-1] != query.shape[-1]:  # without a copy for each head, which takes as long as the rest
            logits = ((q / q.shape[-1] ** 0.5).flatten(1, 2) @ key.mT).unflatten(1, q.shape[1:3])
            output = _attend(logits, v, mask, p)
        else:
            k = key.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            if p > 0 and q.device.type == 'cpu':  # PyTorch has no kernel there, and keeps all weights three times
                output = _attend((q / q.shape[-1] ** 0.5) @ k.mT, v, mask, p)
            else:
                output = F.scaled_dot_product_attention(q, k, v, mask, p)
        return output.transpose(1, 2).flatten(2)


def _attend(
    logits: Tensor,  # [B, M, Q, S]; overwritten
    v: Tensor,  # [B, M, S, E]
    mask: Tensor | None,  # as for scaled_dot_product_attention
    p: float,
) -> Tensor:  # [B, M, Q, E]
    if mask is not None:
        logits = logits.masked_fill_(~mask, float('-inf')) if mask.dtype is torch.bool else logits.add_(mask)
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return dropout_matmul(weights.to(v.dtype), v, p)
