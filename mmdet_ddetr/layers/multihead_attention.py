"""Dense multi-head attention."""

from mmcv.cnn.bricks.transformer import MultiheadAttention as MMCVMultiheadAttention
from torch import Tensor

from mmdet_ddetr.registry import MODELS


@MODELS.register_module()
class MultiheadAttention(MMCVMultiheadAttention):
    """mmcv's wrapper without the [B, Q, K] average of weights that nobody reads.

    mmcv asks ``nn.MultiheadAttention`` for the weights, which keeps it off the fused attention kernels. Same arguments,
    state_dict and results; ``dropout`` is not written into a default that later modules would share.
    """

    def __init__(self, *args, dropout: float | None = None, **kwargs):
        if dropout is not None:
            kwargs.update(attn_drop=dropout, dropout_layer=dict(type='Dropout', drop_prob=dropout))
        kwargs.setdefault('dropout_layer', None)
        super().__init__(*args, **kwargs)

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
        if self.batch_first:  # mmcv builds nn.MultiheadAttention sequence-first
            q, k, value = (x.transpose(0, 1) for x in (q, k, value))
        output, _ = self.attn(q, k, value, attn_mask=attn_mask, key_padding_mask=key_padding_mask, need_weights=False)
        if self.batch_first:
            output = output.transpose(0, 1)
        return identity + self.dropout_layer(self.proj_drop(output))
