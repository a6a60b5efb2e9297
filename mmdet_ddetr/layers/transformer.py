"""The transformer of DETR: encoder and decoder layers, and stacks of them (Carion et al., 2020, appendix A.3)."""

from collections.abc import Callable

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdet_ddetr.registry import MODELS

from .dropout import replace_dropout
from .ffn import FFN
from .multihead_attention import MultiheadAttention

Refine = Callable[[int, Tensor, Tensor], Tensor]  # (layer, hidden, reference) -> boxes


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

    self_attention: type = MultiheadAttention  # where ``self_attn_cfg`` has no ``type``
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
        self.self_attn = build(self_attn_cfg, self.self_attention)
        self.cross_attn = build(cross_attn_cfg, self.cross_attention)
        self.embed_dims = self.self_attn.embed_dims
        if self.cross_attn.embed_dims != self.embed_dims:
            raise ValueError(
                f"cross_attn_cfg.embed_dims must be the self-attention's, {self.embed_dims}, got "
                f'{self.cross_attn.embed_dims}'
            )
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
        """The rest (positions of the keys, references, ...) goes to the cross-attention."""
        query = self.self_attn(query, query_pos=query_pos, key_pos=query_pos, attn_mask=self_attn_mask)
        query = self.norms[0](query)
        query = self.cross_attn(
            query, key=value, value=value, query_pos=query_pos, key_padding_mask=key_padding_mask, **kwargs
        )
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
        if num_layers < 1:
            raise ValueError(f'num_layers must be at least 1, got {num_layers}')
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

    @staticmethod
    def memory_levels(num_levels: int) -> list[int]:
        """For each map that is encoded, of ``num_levels``: which level's cells it has in the memory."""
        return list(range(num_levels))

    def forward(
        self,
        query: Tensor,  # [B, S, C]
        query_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        **kwargs,
    ) -> Tensor:  # [B, S, C]
        for index in range(self.num_layers):
            inputs = self.layer_inputs(index, query, query_pos=query_pos, **kwargs)
            query = self.run(index, query, key_padding_mask=key_padding_mask, **inputs)
        return query

    def layer_inputs(self, index: int, query: Tensor, **inputs) -> dict:
        """What layer ``index`` gets beside its pixels ``query`` [B, S, C]: ``inputs`` as ``forward`` was given them."""
        return inputs


@MODELS.register_module()
class DetrDecoder(TransformerStack):
    """Decoder: object queries attend to each other, then to every pixel.

    The loop over the layers is that of all decoders of the family: queries may have references, points or boxes, which
    each layer may refine. What a paper makes of its references goes into ``layer_inputs``.

    Args:
        return_intermediate: True gives the states of all layers, as the auxiliary losses need; False only the last.
        post_norm_cfg: norm applied to every state that is given out; None for none.
        look_forward_twice: the references given out carry gradients into the layer that refined them, so that each
            layer learns from the boxes of the next, too (DINO, arXiv:2203.03605, section 3.5).
        refine_before_norm: boxes are refined from a layer's state before ``post_norm``, as in DAB-DETR, though the head
            reads the state behind it.
    """

    layer = DetrDecoderLayer

    def __init__(
        self,
        num_layers: int,
        layer_cfg: dict,
        return_intermediate: bool = True,
        post_norm_cfg: dict | None = dict(type='LN'),
        look_forward_twice: bool = False,
        refine_before_norm: bool = False,
        num_cp: int = -1,
        init_cfg: dict | None = None,
    ):
        super().__init__(num_layers, layer_cfg, num_cp, init_cfg)
        self.return_intermediate = return_intermediate
        self.look_forward_twice = look_forward_twice
        self.refine_before_norm = refine_before_norm
        self.post_norm = build_norm_layer(post_norm_cfg, self.embed_dims)[1] if post_norm_cfg else nn.Identity()

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor | None = None,  # [B, Q, 2 or 4]
        refine: Refine | None = None,
        **inputs,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layers.

        Args:
            reference_points: (cx, cy) or (cx, cy, w, h) in [0, 1], normalised by the unpadded image; None: the queries
                have no place.
            refine: gives the next reference from a layer's state (iterative box refinement); None keeps the first.
            inputs: for ``layer_inputs``: ``value`` [B, S, C] and ``key_padding_mask`` [B, S], True = padding, ...

        Returns:
            hidden [layers, B, Q, C] and the reference that each layer *started from*, [layers, B, Q, 2 or 4], or None.
        """
        hidden, references, reference = [], [], reference_points
        for index in range(self.num_layers):
            query = self.run(index, query, **self.layer_inputs(index, query, reference_points, **inputs))
            state = self.post_norm(query)
            hidden.append(state)
            references.append(reference)
            if refine is not None and index + 1 < self.num_layers:
                reference = refine(index, query if self.refine_before_norm else state, reference_points)
                # Detached: gradients do not flow from one layer's boxes into the next (Deformable DETR, appendix A.4).
                reference_points = reference.detach()
                if not self.look_forward_twice:
                    reference = reference_points
        if not self.return_intermediate:
            hidden, references = hidden[-1:], references[-1:]
        if reference_points is None:
            return torch.stack(hidden), None
        if references[0].shape != references[-1].shape:  # 2-dim at the start, boxes once refined
            references[0] = nn.functional.pad(references[0], (0, 2), value=0.5)  # logit(0.5) = 0 shifts nothing
        return torch.stack(hidden), torch.stack(references)

    def layer_inputs(self, index: int, query: Tensor, reference_points: Tensor | None, **inputs) -> dict:
        """What layer ``index`` gets beside its queries: keys and values, positions of both, references, ...

        Args:
            query: [B, Q, C], the state that the layer starts from.
            reference_points: [B, Q, 2 or 4], as refined by the layers before.
            inputs: what ``forward`` was given: ``value`` [B, S, C], ``key_padding_mask`` [B, S], True = padding,
                ``self_attn_mask`` [Q, Q], True = not seen; here ``query_pos`` [B, Q, C] and ``key_pos`` [B, S, C].
        """
        return inputs
