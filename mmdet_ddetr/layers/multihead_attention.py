"""Dense multi-head attention."""

import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import MultiheadAttention as MMCVMultiheadAttention
from torch import Tensor

from mmdet_ddetr.registry import MODELS

from .dot_product_attention import DotProductAttention


@MODELS.register_module()
class MultiheadAttention(MMCVMultiheadAttention):
    """mmcv's wrapper, with the product of all attentions here in place of ``nn.MultiheadAttention``'s.

    That one computes a [B, Q, K] average of weights that nobody reads, copies what is not sequence-first, and with
    dropout keeps each weight three times on a CPU. Same state_dict and results. Same arguments, but ``dropout`` is not
    written into a default that later modules would share, and keys and values have the queries' width.
    """

    def __init__(self, *args, dropout: float | None = None, **kwargs):
        if dropout is not None:
            kwargs.update(attn_drop=dropout, dropout_layer=dict(type='Dropout', drop_prob=dropout))
        kwargs.setdefault('dropout_layer', None)
        super().__init__(*args, **kwargs)
        if self.attn.in_proj_weight is None or self.attn.bias_k is not None or self.attn.add_zero_attn:
            raise ValueError('kdim, vdim, add_bias_kv and add_zero_attn must be left out of MultiheadAttention')
        self.attention = DotProductAttention(self.num_heads, self.attn.dropout)

    def forward(
        self,
        query: Tensor,  # [B, Q, C] (batch_first) or [Q, B, C], so are all the others
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,  # [Q, keys], True = not seen
        key_padding_mask: Tensor | None = None,  # [B, keys], True = padding
        **kwargs,
    ) -> Tensor:
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        if key_pos is None and query_pos is not None and query_pos.shape == key.shape:
            key_pos = query_pos
        q = query if query_pos is None else query + query_pos
        k = key if key_pos is None else key + key_pos
        if not self.batch_first:
            q, k, value = (x.transpose(0, 1) for x in (q, k, value))
        output = self.attention(*self.project(q, k, value), key_padding_mask, attn_mask)
        if not self.batch_first:
            output = output.transpose(0, 1)
        return identity + self.dropout_layer(self.proj_drop(self.attn.out_proj(output)))

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """[B, n, C] each; the channels of one head after those of another."""
        bias = self.attn.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(map(F.linear, (query, key, value), self.attn.in_proj_weight.chunk(3), biases))
