"""Detectors that predict a mask with each box (DETR, section 4.4). The other papers have none; the head is DETR's."""

import torch
from mmdet.structures import OptSampleList, SampleList
from mmdet.utils import reduce_mean
from mmengine.structures import PixelData
from torch import Tensor

from mmdet_ddetr.heads import check_labels
from mmdet_ddetr.layers import ImageSizes, padding_masks
from mmdet_ddetr.registry import MODELS

from .anchor_detr import AnchorDETR
from .conditional_detr import ConditionalDETR
from .dab_detr import DABDETR, DABDeformableDETR
from .deformable_detr import DeformableDETR
from .detr import DETR
from .sam_detr import SAMDETR
from .smca_detr import SMCADETR


class WithMasks:
    """Adds a mask head to a detector of the family.

    The mask head reads the states of the last decoder layer, the encoder's memory of C5, and C2 to C4 of the backbone,
    whose ``out_indices`` are therefore all four; the neck gets as many of the last as it has ``in_channels``. Ground
    truth are ``gt_instances.masks``, padded like the images (``pad_mask=True`` of the data preprocessor).

    Args:
        mask_head: config of the head, by default of type ``MaskHead``.
        freeze_detector: train the mask head alone, on a detector that is trained already, as the paper does. The
            detector's dropout stays, as in the official code.
        panoptic_fusion_head: config of what makes a panoptic map of the masks, by default of type ``PanopticFusion``;
            None: there are no panoptic maps.
        **kwargs: as of the detector.
    """

    def __init__(
        self,
        *args,
        neck: dict,
        mask_head: dict,
        freeze_detector: bool = False,
        panoptic_fusion_head: dict | None = None,
        **kwargs,
    ):
        if kwargs.get('own_maps'):
            raise ValueError('own_maps must be False in a detector with masks, whose head reads the padded maps')
        super().__init__(*args, neck=neck, **kwargs)
        self.num_neck_inputs = len(neck['in_channels'])
        if freeze_detector:
            self.requires_grad_(False)
        self.mask_head = MODELS.build({'type': 'mmdet_ddetr.MaskHead', **mask_head})
        self.panoptic_fusion_head = None
        if panoptic_fusion_head is not None:
            self.panoptic_fusion_head = MODELS.build({'type': 'mmdet_ddetr.PanopticFusion', **panoptic_fusion_head})

    def extract_feat(self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None) -> tuple[Tensor, ...]:
        return self._extract_maps(batch_inputs)[0]

    def _extract_maps(self, batch_inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The neck's maps, and the backbone's C4, C3 and C2."""
        maps = self.backbone(batch_inputs)
        return self.neck(maps[-self.num_neck_inputs :]), tuple(maps[-2::-1])

    def pre_decoder(self, memory: Tensor, **kwargs) -> tuple[dict, dict]:
        """As of the detector; the memory goes on to the heads."""
        decoder_inputs, head_inputs = super().pre_decoder(memory, **kwargs)
        return decoder_inputs, dict(head_inputs, memory=memory)

    def _mask_logits(
        self,
        query: Tensor,  # [N, C]
        image: Tensor,  # [N]
        memory: Tensor,  # [B, S, C]
        maps: tuple[Tensor, ...],  # [B, C, H, W] per level
        finer: tuple[Tensor, ...],
        batch_data_samples: SampleList,
    ) -> Tensor:  # [N, h, w]
        level = self.num_neck_inputs - 1  # C5; the neck adds coarser ones behind
        source = maps[level]
        shape = tuple(source.shape[-2:])
        levels = self.encoder.memory_levels(len(maps))
        memory = memory.split([maps[i][0, 0].numel() for i in levels], 1)[levels.index(level)]
        memory = memory.transpose(1, 2).unflatten(2, shape)
        (mask,) = padding_masks([shape], batch_data_samples, source.device)
        return self.mask_head(query, image, source, memory, mask, finer)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The detector's losses; ``loss_mask`` and ``loss_dice`` of the queries matched in the last layer."""
        maps, finer = self._extract_maps(batch_inputs)
        head_inputs = self.forward_transformer(maps, batch_data_samples)
        memory, hidden = head_inputs.pop('memory'), head_inputs['hidden'][-1]  # [B, Q, C]
        head, instances = self.bbox_head, [sample.gt_instances for sample in batch_data_samples]
        metas = [sample.metainfo for sample in batch_data_samples]
        check_labels(instances, metas, head.num_classes)
        targets = head.collect_targets(instances, metas)
        encoder = map(head_inputs.get, ('enc_outputs_class', 'enc_outputs_coord'))
        others = map(head_inputs.get, ('groups', 'cells'))
        losses, match = head.loss_and_match(*head(**head_inputs), *encoder, targets, *others)
        logits = self._mask_logits(
            hidden[match.image, match.query], match.image, memory, maps, finer, batch_data_samples
        )
        masks = torch.cat([gt.masks.to_tensor(torch.bool, logits.device) for gt in instances])
        avg_factor = reduce_mean(logits.new_tensor(float(match.per_layer))).clamp(min=1)
        return dict(losses, **self.mask_head.loss(logits, masks[match.target], avg_factor))

    def _forward(self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None) -> tuple[Tensor, ...]:
        """Raw outputs: logits and boxes of all layers, mask logits [B, Q, H/4, W/4] of the last one's queries."""
        maps, finer = self._extract_maps(batch_inputs)
        head_inputs = self.forward_transformer(maps, batch_data_samples)
        memory, hidden = head_inputs.pop('memory'), head_inputs['hidden'][-1]  # [B, Q, C]
        image = torch.arange(hidden.shape[0], device=hidden.device).repeat_interleave(hidden.shape[1])
        masks = self._mask_logits(hidden.flatten(0, 1), image, memory, maps, finer, batch_data_samples)
        return *self.bbox_head(**head_inputs), masks.unflatten(0, hidden.shape[:2])

    def detect(self, batch_inputs: Tensor, sizes: ImageSizes) -> tuple[Tensor, ...]:
        """As of the detector; and the logits [B, N, H/4, W/4] of the detections' masks, in the padded input."""
        maps, finer = self._extract_maps(batch_inputs)
        head_inputs = self.forward_transformer(maps, sizes)
        *detections, query = self._best(head_inputs, sizes)
        hidden = head_inputs['hidden'][-1]
        hidden = hidden.gather(1, query[..., None].expand(-1, -1, hidden.shape[-1]))  # [B, N, C]
        image = torch.arange(hidden.shape[0], device=hidden.device)[:, None].expand(query.shape).flatten()
        masks = self._mask_logits(hidden.flatten(0, 1), image, head_inputs['memory'], maps, finer, sizes)
        return *detections, masks.unflatten(0, query.shape)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Detections with ``masks`` [N, H, W], bool; ``pred_panoptic_seg`` if there is a fusion head."""
        maps, finer = self._extract_maps(batch_inputs)
        head_inputs = self.forward_transformer(maps, batch_data_samples)
        memory = head_inputs.pop('memory')
        results = self.bbox_head.predict(**head_inputs, batch_data_samples=batch_data_samples, rescale=rescale)
        for i, (detections, sample) in enumerate(zip(results, batch_data_samples)):
            query = head_inputs['hidden'][-1, i, detections.query]
            image = detections.query.new_full((len(query),), i)
            logits = self._mask_logits(query, image, memory, maps, finer, batch_data_samples)
            logits = self.mask_head.without_padding(logits, sample.metainfo)
            size = tuple((sample.ori_shape if rescale else sample.img_shape)[:2])
            detections.masks = self.mask_head.predict(logits, size)
            if self.panoptic_fusion_head is not None:
                segments = self.panoptic_fusion_head(
                    logits, detections.scores, detections.labels, detections.query, size
                )
                sample.pred_panoptic_seg = PixelData(sem_seg=segments)
        return self.add_pred_to_datasample(batch_data_samples, results)


@MODELS.register_module()
class DETRWithMasks(WithMasks, DETR):
    """DETR for instance segmentation."""


@MODELS.register_module()
class ConditionalDETRWithMasks(WithMasks, ConditionalDETR):
    """Conditional DETR for instance segmentation."""


@MODELS.register_module()
class DABDETRWithMasks(WithMasks, DABDETR):
    """DAB-DETR for instance segmentation."""


@MODELS.register_module()
class DABDeformableDETRWithMasks(WithMasks, DABDeformableDETR):
    """DAB-Deformable-DETR for instance segmentation."""


@MODELS.register_module()
class SMCADETRWithMasks(WithMasks, SMCADETR):
    """SMCA-DETR for instance segmentation."""


@MODELS.register_module()
class AnchorDETRWithMasks(WithMasks, AnchorDETR):
    """Anchor DETR for instance segmentation."""


@MODELS.register_module()
class SAMDETRWithMasks(WithMasks, SAMDETR):
    """SAM-DETR for instance segmentation."""


@MODELS.register_module()
class DeformableDETRWithMasks(WithMasks, DeformableDETR):
    """Deformable DETR for instance segmentation. The paper has no masks; the head is DETR's, on the memory of C5."""
