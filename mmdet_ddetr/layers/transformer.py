"""The transformer of DETR: encoder and decoder layers, and stacks of them (Carion et al., 2020, appendix A.3)."""

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdet_ddetr.registry import MODELS

from .dropout import replace_dropout
from .ffn import FFN
from .multihead_attention import MultiheadAttention


def build(cfg: dict, default: type):
    """Build a module from a config whose ``type`` may be missing."""
    return MODELS.build({'type': default, **cfg})


def build_norms(norm_cfg: dict, embed_dims: int, count: int) -> ModuleList:
    return ModuleList(build_norm_layer(norm_cfg, embed_dims)[1] for _ in range(count))


@MODELS.register_module()
class DetrEncoderLayer(BaseModule):
    """Self-attention and FFN, each with residual and post-norm."""

    attention: type = MultiheadAttention  # where ``self_attn_cfg`` has no ``type``

    def __init__(
        self, self_attn_cfg: dict, ffn_cfg: dict, norm_cfg: dict = dict(type='LN'), init_cfg: dict | None = None
    ):
        super().__init__(init_cfg)
        self.self_attn = build(self_attn_cfg, self.attention)
        self.embed_dims = self.self_attn.embed_dims
        self.ffn = build(ffn_cfg, FFN)
        self.norms = build_norms(norm_cfg, self.embed_dims, 2)

    def forward(self, query: Tensor, query_pos: Tensor, key_padding_mask: Tensor | None, **kwargs) -> Tensor:
        """query, query_pos [B, S, C]; key_padding_mask [B, S]; the rest goes to the attention."""
        query = self.self_attn(query, query_pos=query_pos, key_padding_mask=key_padding_mask, **kwargs)
        query = self.norms[0](query)
        return self.norms[1](self.ffn(query))


@MODELS.register_module()
class DetrDecoderLayer(BaseModule):
    """Self-attention among the queries, cross-attention, FFN, each with residual and post-norm."""

    cross_attention: type = MultiheadAttention  # where ``cross_attn_cfg`` has no ``type``

    def __init__(
        self,
        self_attn_cfg: dict,
        cross_attn_cfg: dict,
        ffn_cfg: dict,
        norm_cfg: dict = dict(type='LN'),
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.self_attn = build(self_attn_cfg, MultiheadAttention)
        self.cross_attn = build(cross_attn_cfg, self.cross_attention)
        self.embed_dims = self.self_attn.embed_dims
        self.ffn = build(ffn_cfg, FFN)
        self.norms = build_norms(norm_cfg, self.embed_dims, 3)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        query_pos: Tensor,  # [B, Q, C]
        value: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        self_attn_mask: Tensor | None = None,  # [Q, Q], True = not seen
        **kwargs,
    ) -> Tensor:  # [B, Q, C]
        """The rest (keys, references, ...) goes to the cross-attention."""
        query = self.self_attn(query, query_pos=query_pos, key_pos=query_pos, attn_mask=self_attn_mask)
        query = self.norms[0](query)
        query = self.cross_attn(query, value=value, query_pos=query_pos, key_padding_mask=key_padding_mask, **kwargs)
        query = self.norms[1](query)
        return self.norms[2](self.ffn(query))


class TransformerStack(BaseModule):
    """``num_layers`` equal layers, the first ``num_cp`` of them with activation checkpointing.

    Args:
        num_layers: how many.
        layer_cfg: config of one layer; its ``type`` decides the class.
        num_cp: layers that recompute their activations in the backward pass instead of keeping them.
    """

    layer: type  # where ``layer_cfg`` has no ``type``

    def __init__(self, num_layers: int, layer_cfg: dict, num_cp: int = -1, init_cfg: dict | None = None):
        super().__init__(init_cfg)
        if num_cp > num_layers:
            raise ValueError(f'num_cp must be at most num_layers={num_layers}, got {num_cp}')
        self.num_layers = num_layers
        self.num_cp = num_cp
        self.layers = ModuleList(build(layer_cfg, self.layer) for _ in range(num_layers))
        replace_dropout(self.layers)
        self.embed_dims = self.layers[0].embed_dims

    def run(self, index: int, *args, **kwargs) -> Tensor:
        """Forward of layer ``index``."""
        if index < self.num_cp and self.training and torch.is_grad_enabled():
            return checkpoint(self.layers[index], *args, use_reentrant=False, **kwargs)
        return self.layers[index](*args, **kwargs)


@MODELS.register_module()
class DetrEncoder(TransformerStack):
    """Encoder: every pixel attends to every other."""

    layer = DetrEncoderLayer

    def forward(
        self,
        query: Tensor,  # [B, S, C]
        query_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        **kwargs,
    ) -> Tensor:  # [B, S, C]
        for index in range(self.num_layers):
            query = self.run(index, query, query_pos=query_pos, key_padding_mask=key_padding_mask, **kwargs)
        return query


@MODELS.register_module()
class DetrDecoder(TransformerStack):
    """Decoder: object queries attend to each other, then to every pixel.

    Args:
        return_intermediate: True gives the states of all layers, as the auxiliary losses need; False only the last.
        post_norm_cfg: norm applied to every state that is given out; None for none.
    """

    layer = DetrDecoderLayer

    def __init__(
        self,
        num_layers: int,
        layer_cfg: dict,
        return_intermediate: bool = True,
        post_norm_cfg: dict | None = dict(type='LN'),
        num_cp: int = -1,
        init_cfg: dict | None = None,
    ):
        super().__init__(num_layers, layer_cfg, num_cp, init_cfg)
        self.return_intermediate = return_intermediate
        self.post_norm = build_norm_layer(post_norm_cfg, self.embed_dims)[1] if post_norm_cfg else nn.Identity()

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        query_pos: Tensor,  # [B, Q, C]
        value: Tensor,  # [B, S, C]
        key_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        **kwargs,
    ) -> Tensor:  # [layers, B, Q, C]
        hidden = []
        for index in range(self.num_layers):
            query = self.run(
                index,
                query,
                query_pos=query_pos,
                key=value,
                value=value,
                key_pos=key_pos,
                key_padding_mask=key_padding_mask,
                **kwargs,
            )
            hidden.append(self.post_norm(query))
        return torch.stack(hidden if self.return_intermediate else hidden[-1:])
