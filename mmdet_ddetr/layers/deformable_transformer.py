"""The deformable transformer: stacks of encoder and decoder layers (Deformable DETR, section 4.2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmdet_ddetr.registry import MODELS

from .ms_deform_attn import MSDeformAttn
from .transformer import DetrDecoder, DetrDecoderLayer, DetrEncoder, DetrEncoderLayer

Refine = Callable[[int, Tensor, Tensor], Tensor]  # (layer, hidden, reference) -> boxes


@MODELS.register_module()
class DeformableEncoderLayer(DetrEncoderLayer):
    """Deformable self-attention and FFN, each with residual and post-norm."""

    attention = MSDeformAttn


@MODELS.register_module()
class DeformableDecoderLayer(DetrDecoderLayer):
    """Self-attention among the queries, deformable cross-attention, FFN, each with residual and post-norm."""

    cross_attention = MSDeformAttn


@MODELS.register_module()
class DeformableEncoder(DetrEncoder):
    """Encoder over all levels: every pixel is a query with its own centre as reference."""

    layer = DeformableEncoderLayer

    def forward(
        self,
        query: Tensor,  # [B, S, C]
        query_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        valid_ratios: Tensor,  # [B, L, 2]
        **kwargs,
    ) -> Tensor:  # [B, S, C]
        return super().forward(
            query,
            query_pos,
            key_padding_mask,
            spatial_shapes=spatial_shapes,
            reference_points=self.reference_points(spatial_shapes, valid_ratios),
            **kwargs,
        )

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
            ratio_x, ratio_y = valid_ratios[:, None, level].unbind(-1)  # [B, 1]
            x = (torch.arange(W, dtype=torch.float32, device=valid_ratios.device) + 0.5) / (ratio_x * W)
            y = (torch.arange(H, dtype=torch.float32, device=valid_ratios.device) + 0.5) / (ratio_y * H)
            points.append(torch.stack([x.repeat(1, H), y.repeat_interleave(W, 1)], -1))  # [B, H*W, 2]
        return torch.cat(points, 1)[:, :, None] * valid_ratios[:, None]


@MODELS.register_module()
class DeformableDecoder(DetrDecoder):
    """Decoder: object queries attend to each other, then to points around their references.

    Args:
        post_norm_cfg: as in ``DetrDecoder``, but Deformable DETR has none.
    """

    layer = DeformableDecoderLayer

    def __init__(self, *args, post_norm_cfg: dict | None = None, **kwargs):
        super().__init__(*args, post_norm_cfg=post_norm_cfg, **kwargs)

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
        look_forward_twice: bool = False,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """Run the layers.

        Args:
            reference_points: (cx, cy) or (cx, cy, w, h) in [0, 1], normalised by the unpadded image.
            refine: gives the next reference from a layer's state (iterative box refinement); None keeps the first.
            look_forward_twice: the references given out carry gradients into the layer that refined them, so that each
                layer learns from the boxes of the next, too (DINO, arXiv:2203.03605, section 3.5).

        Returns:
            hidden [layers, B, Q, C] and the reference that each layer *started from*, [layers, B, Q, 2 or 4].
        """
        hidden, references, reference = [], [], reference_points
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
            state = self.post_norm(query)
            hidden.append(state)
            references.append(reference)
            if refine is not None and index + 1 < self.num_layers:
                reference = refine(index, state, reference_points)
                # Detached: gradients do not flow from one layer's boxes into the next (paper, appendix A.4).
                reference_points = reference.detach()
                if not look_forward_twice:
                    reference = reference_points
        if not self.return_intermediate:
            return hidden[-1][None], references[-1][None]
        if references[0].shape != references[-1].shape:  # 2-dim at the start, boxes once refined
            references[0] = torch.nn.functional.pad(references[0], (0, 2), value=0.5)  # logit(0.5) = 0 shifts nothing
        return torch.stack(hidden), torch.stack(references)
