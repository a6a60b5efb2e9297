"""The deformable transformer: stacks of encoder and decoder layers (Deformable DETR, section 4.2)."""

from collections.abc import Callable

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule, ModuleList
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmdet_ddetr.registry import MODELS

from .ms_deform_attn import MSDeformAttn
from .multihead_attention import MultiheadAttention

Refine = Callable[[int, Tensor, Tensor], Tensor]  # (layer, hidden, reference) -> boxes


def build(cfg: dict, default: type):
    """Build a module from a config whose ``type`` may be missing."""
    return MODELS.build({'type': default, **cfg})


def build_norms(norm_cfg: dict, embed_dims: int, count: int) -> ModuleList:
    return ModuleList(build_norm_layer(norm_cfg, embed_dims)[1] for _ in range(count))


class TransformerStack(BaseModule):
    """``num_layers`` equal layers, the first ``num_cp`` of them with activation checkpointing.

    Args:
        num_layers: how many.
        layer_cfg: config of one layer; its ``type`` decides the class.
        default_layer: class where ``layer_cfg`` has no ``type``.
        num_cp: layers that recompute their activations in the backward pass instead of keeping them.
    """

    def __init__(
        self, num_layers: int, layer_cfg: dict, default_layer: type, num_cp: int = -1, init_cfg: dict | None = None
    ):
        super().__init__(init_cfg)
        if num_cp > num_layers:
            raise ValueError(f'num_cp must be at most num_layers={num_layers}, got {num_cp}')
        self.num_layers = num_layers
        self.num_cp = num_cp
        self.layers = ModuleList(build(layer_cfg, default_layer) for _ in range(num_layers))
        self.embed_dims = self.layers[0].embed_dims

    def run(self, index: int, *args, **kwargs) -> Tensor:
        """Forward of layer ``index``."""
        if index < self.num_cp and self.training and torch.is_grad_enabled():
            return checkpoint(self.layers[index], *args, use_reentrant=False, **kwargs)
        return self.layers[index](*args, **kwargs)


@MODELS.register_module()
class DeformableEncoder(TransformerStack):
    """Encoder over all levels: every pixel is a query with its own centre as reference."""

    def __init__(self, num_layers: int, layer_cfg: dict, num_cp: int = -1, init_cfg: dict | None = None):
        super().__init__(num_layers, layer_cfg, DeformableEncoderLayer, num_cp, init_cfg)

    def forward(
        self,
        query: Tensor,  # [B, S, C]
        query_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        valid_ratios: Tensor,  # [B, L, 2]
        **kwargs,
    ) -> Tensor:  # [B, S, C]
        reference_points = self.reference_points(spatial_shapes, valid_ratios)
        for index in range(self.num_layers):
            query = self.run(
                index,
                query,
                query_pos=query_pos,
                key_padding_mask=key_padding_mask,
                spatial_shapes=spatial_shapes,
                reference_points=reference_points,
                **kwargs,
            )
        return query

    @staticmethod
    def reference_points(
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        valid_ratios: Tensor,  # [B, L, 2]
    ) -> Tensor:  # [B, S, L, 2]
        """Pixel centres in [0, 1] of the unpadded image, expressed in the padded map of each target level.

        Args:
            valid_ratios: (x, y) share of each level's map that is image, the rest being padding.
        """
        points = []
        for level, (H, W) in enumerate(spatial_shapes):
            y = torch.linspace(0.5, H - 0.5, H, dtype=torch.float32, device=valid_ratios.device)
            x = torch.linspace(0.5, W - 0.5, W, dtype=torch.float32, device=valid_ratios.device)
            grid = torch.stack([x.repeat(H), y.repeat_interleave(W)], -1)  # [H*W, 2]
            valid = valid_ratios[:, None, level] * torch.tensor([W, H], dtype=torch.float32, device=grid.device)
            points.append(grid[None] / valid)
        return torch.cat(points, 1)[:, :, None] * valid_ratios[:, None]


@MODELS.register_module()
class DeformableDecoder(TransformerStack):
    """Decoder: object queries attend to each other, then to points around their references.

    Args:
        return_intermediate: True gives the states of all layers, as the auxiliary losses need; False only the last.
        post_norm_cfg: norm applied to every state that is given out; Deformable DETR has none.
    """

    def __init__(
        self,
        num_layers: int,
        layer_cfg: dict,
        return_intermediate: bool = True,
        post_norm_cfg: dict | None = None,
        num_cp: int = -1,
        init_cfg: dict | None = None,
    ):
        super().__init__(num_layers, layer_cfg, DeformableDecoderLayer, num_cp, init_cfg)
        self.return_intermediate = return_intermediate
        self.post_norm = build_norm_layer(post_norm_cfg, self.embed_dims)[1] if post_norm_cfg else None

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        query_pos: Tensor,  # [B, Q, C]
        value: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        reference_points: Tensor,  # [B, Q, 2 or 4]
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        valid_ratios: Tensor,  # [B, L, 2]
        refine: Refine | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """Run the layers.

        Args:
            reference_points: (cx, cy) or (cx, cy, w, h) in [0, 1], normalised by the unpadded image.
            refine: gives the next reference from a layer's state (iterative box refinement); None keeps the first.

        Returns:
            hidden [layers, B, Q, C] and the reference that each layer *started from*, [layers, B, Q, 2 or 4].
        """
        hidden, references = [], []
        for index in range(self.num_layers):
            ratios = valid_ratios if reference_points.shape[-1] == 2 else valid_ratios.repeat(1, 1, 2)
            query = self.run(
                index,
                query,
                query_pos=query_pos,
                value=value,
                key_padding_mask=key_padding_mask,
                reference_points=reference_points[:, :, None] * ratios[:, None],
                spatial_shapes=spatial_shapes,
                **kwargs,
            )
            state = query if self.post_norm is None else self.post_norm(query)
            hidden.append(state)
            references.append(reference_points)
            if refine is not None and index + 1 < self.num_layers:
                # Detached: gradients do not flow from one layer's boxes into the next (paper, appendix A.4).
                reference_points = refine(index, state, reference_points).detach()
        if not self.return_intermediate:
            return hidden[-1][None], references[-1][None]
        if references[0].shape != references[-1].shape:  # 2-dim at the start, boxes once refined
            references[0] = torch.nn.functional.pad(references[0], (0, 2), value=0.5)  # logit(0.5) = 0 shifts nothing
        return torch.stack(hidden), torch.stack(references)


@MODELS.register_module()
class DeformableEncoderLayer(BaseModule):
    """Deformable self-attention and FFN, each with residual and post-norm."""

    def __init__(
        self, self_attn_cfg: dict, ffn_cfg: dict, norm_cfg: dict = dict(type='LN'), init_cfg: dict | None = None
    ):
        super().__init__(init_cfg)
        self.self_attn = build(self_attn_cfg, MSDeformAttn)
        self.embed_dims = self.self_attn.embed_dims
        self.ffn = build(ffn_cfg, FFN)
        self.norms = build_norms(norm_cfg, self.embed_dims, 2)

    def forward(self, query: Tensor, query_pos: Tensor, key_padding_mask: Tensor | None, **kwargs) -> Tensor:
        """query, query_pos [B, S, C]; key_padding_mask [B, S]; the rest goes to the attention."""
        query = self.self_attn(query, query_pos=query_pos, key_padding_mask=key_padding_mask, **kwargs)
        query = self.norms[0](query)
        return self.norms[1](self.ffn(query))


@MODELS.register_module()
class DeformableDecoderLayer(BaseModule):
    """Self-attention among the queries, deformable cross-attention, FFN, each with residual and post-norm."""

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
        self.cross_attn = build(cross_attn_cfg, MSDeformAttn)
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
        query = self.self_attn(query, query_pos=query_pos, key_pos=query_pos, attn_mask=self_attn_mask)
        query = self.norms[0](query)
        query = self.cross_attn(query, value=value, query_pos=query_pos, key_padding_mask=key_padding_mask, **kwargs)
        query = self.norms[1](query)
        return self.norms[2](self.ffn(query))
