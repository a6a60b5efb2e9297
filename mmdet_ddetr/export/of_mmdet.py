"""mmdet's own detectors of this family, in the form that this package's have for exported programs."""

import copy

import torch
from mmdet.models.detectors import DINO, DeformableDETR
from torch import Tensor, nn

from mmdet_ddetr import detectors
from mmdet_ddetr.acceleration import accelerate
from mmdet_ddetr.heads.set_head import SetHead
from mmdet_ddetr.layers import DeformableEncoder, ImageSizes, padding_masks
from mmdet_ddetr.layers.boxes import refine_box

MMDET = DeformableDETR, DINO


class OfMMDet(nn.Module):
    """mmdet's ``DeformableDETR`` or ``DINO`` with the shapes of maps as numbers, and sizes in place of data samples.

    Args:
        model: one of them, and of no class derived from it, whose steps may be others. Its attention modules are
            accelerated in place.
    """

    def __init__(self, model: DeformableDETR):
        super().__init__()
        accelerate(model)
        self.model = copy.copy(model)
        self.model.__class__ = type(type(model).__name__, (_Proposals, type(model)), {})
        self.num_proposals = model.num_queries if model.as_two_stage else 0
        self.num_feature_levels = model.num_feature_levels

    def detect(self, batch_inputs: Tensor, sizes: ImageSizes) -> tuple[Tensor, ...]:
        """As :meth:`mmdet_ddetr.detectors.BaseDETR.detect`."""
        model, head = self.model, self.model.bbox_head
        cells, mask, positions, geometry = self._pre_transformer(model.extract_feat(batch_inputs), sizes)
        points = DeformableEncoder.reference_points(geometry['spatial_shapes'], geometry['valid_ratios'])
        for layer in model.encoder.layers:
            cells = layer(cells, query_pos=positions, key_padding_mask=mask, reference_points=points, **geometry)
        queries, _ = model.pre_decoder(cells, mask, geometry['spatial_shapes'])
        # Halves of learned queries are views, whose stride is also that of a batch of two: see detectors.halves.
        queries = {name: None if x is None else x.contiguous() for name, x in queries.items()}
        if isinstance(model, DINO):  # its forward_decoder takes len() of a batch, which would fix that
            queries = dict(queries, value=queries['memory'], self_attn_mask=None)
            del queries['memory'], queries['dn_mask']
            hidden, references = model.decoder(
                key_padding_mask=mask, reg_branches=head.reg_branches, **queries, **geometry
            )
        else:
            hidden, references = model.forward_decoder(memory_mask=mask, **queries, **geometry).values()
        last = model.decoder.num_layers - 1
        logits = head.cls_branches[last](hidden[last])
        boxes = refine_box(head.reg_branches[last](hidden[last]), references[last])
        return SetHead.best(head, logits, boxes, sizes.images.flip(1).repeat(1, 2))[:3]

    def _pre_transformer(self, maps: tuple[Tensor, ...], sizes: ImageSizes) -> tuple[Tensor, Tensor, Tensor, dict]:
        """Cells [B, S, C] of all maps, their mask [B, S] and positions [B, S, C], and what tells the maps apart."""
        model, shapes = self.model, [tuple(x.shape[-2:]) for x in maps]
        masks = padding_masks(shapes, sizes, maps[0].device)
        positions = [
            model.positional_encoding(mask).flatten(2).transpose(1, 2) + embed
            for mask, embed in zip(masks, model.level_embed)
        ]
        ratios = torch.stack([model.get_valid_ratio(mask) for mask in masks], 1)
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        geometry = dict(spatial_shapes=shapes, level_start_index=None, valid_ratios=ratios)
        return cells, torch.cat([mask.flatten(1) for mask in masks], 1), torch.cat(positions, 1), geometry


class _Proposals:
    """Before mmdet's class: the same proposals by arange, because its linspace fixes the shapes of the maps."""

    def gen_encoder_output_proposals(
        self,
        memory: Tensor,  # [B, S, C]
        memory_mask: Tensor,  # [B, S], True = padding
        spatial_shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        masks = memory_mask.split([H * W for H, W in spatial_shapes], 1)
        masks = [mask.unflatten(1, shape) for mask, shape in zip(masks, spatial_shapes)]
        ratios = torch.stack([self.get_valid_ratio(mask) for mask in masks], 1)
        proposals, usable = detectors.DeformableDETR.encoder_proposals(spatial_shapes, ratios, memory_mask)
        memory = self.memory_trans_fc(memory.masked_fill(~usable, 0.0))
        return self.memory_trans_norm(memory), proposals
