"""From overlapping masks to one panoptic map (DETR, section 4.4; official ``PostProcessPanoptic``)."""

import torch
import torch.nn.functional as F
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.model import BaseModule
from torch import Tensor

from mmdet_ddetr.registry import MODELS


@MODELS.register_module()
class PanopticFusion(BaseModule):
    """Each pixel belongs to the one mask that is surest of it, among detections with a high score.

    Args:
        num_things_classes: classes below this number are things.
        num_stuff_classes: the classes behind them are stuff, at most one segment each.
        score_thr: detections with at most this score are ignored.
        min_area: segments with fewer pixels are removed, and their pixels go to the others.
    """

    def __init__(
        self,
        num_things_classes: int = 80,
        num_stuff_classes: int = 53,
        score_thr: float = 0.85,
        min_area: int = 5,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.num_things_classes = num_things_classes
        self.num_classes = num_things_classes + num_stuff_classes
        self.score_thr = score_thr
        self.min_area = min_area

    def forward(
        self,
        logits: Tensor,  # [N, h, w] of the masks of one image
        scores: Tensor,  # [N]
        labels: Tensor,  # [N]
        query: Tensor,  # [N] that each comes from
        size: tuple[int, int],
    ) -> Tensor:  # [1, *size]
        """mmdet's panoptic map: label of stuff, label + i * INSTANCE_OFFSET of thing i, ``num_classes`` of nothing."""
        kept = torch.nonzero(scores > self.score_thr)[:, 0]
        kept = kept[query[kept].argsort(stable=True)]  # of one kind of stuff, the first query's mask is the segment
        logits, labels = logits[kept], labels[kept]
        while len(labels):
            segment = self._first_of_its_stuff(labels)[logits.argmax(0)]  # [h, w]
            segment = F.interpolate(segment[None, None].float(), size=tuple(size), mode='nearest-exact').long()[0]
            is_large = segment.flatten().bincount(minlength=len(labels)) >= self.min_area
            if is_large.all():
                return self._segment_ids(labels)[segment]
            logits, labels = logits[is_large], labels[is_large]
        return torch.full((1, *size), self.num_classes, dtype=torch.int32, device=logits.device)

    def _first_of_its_stuff(self, labels: Tensor) -> Tensor:  # [N] -> [N]
        """Index of the mask that stands for each: itself, or the first of the same stuff."""
        is_same = (labels[:, None] == labels) & (labels >= self.num_things_classes)
        return (is_same | torch.eye(len(labels), dtype=torch.bool, device=labels.device)).int().argmax(1)

    def _segment_ids(self, labels: Tensor) -> Tensor:  # [N] -> [N]
        number = torch.arange(1, len(labels) + 1, device=labels.device)
        return torch.where(labels < self.num_things_classes, labels + number * INSTANCE_OFFSET, labels).int()
