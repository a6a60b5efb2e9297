"""The costs of DETR and Deformable DETR in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet_ddetr.ops import has_compiled_kernel, matching_cost

from .match_costs import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost, MatchCost, Targets


@dataclass(frozen=True)
class FusedCost:
    """The sum of a class cost, the L1 distance of (cx, cy, w, h) and the generalised IoU, by one compiled op.

    Attributes:
        cls, l1, iou: the costs whose sum it is.
    """

    cls: FocalLossCost | ClassificationCost
    l1: BBoxL1Cost
    iou: IoUCost

    @classmethod
    def of(cls, costs: Sequence[MatchCost]) -> 'FusedCost | None':
        """The same as the sum of ``costs``; None if they are others, or the same ones in another form."""
        by_type = {type(cost): cost for cost in costs}
        for class_cost in (FocalLossCost, ClassificationCost):
            if len(costs) == 3 and by_type.keys() == {class_cost, BBoxL1Cost, IoUCost}:
                fused = cls(by_type[class_cost], by_type[BBoxL1Cost], by_type[IoUCost])
                if fused.l1.box_format == 'xywh' and fused.iou.iou_mode == 'giou':
                    return fused
        return None

    @staticmethod
    @torch.compiler.assume_constant_result
    def runs_on(device_type: str) -> bool:
        return has_compiled_kernel('matching_cost', device_type)

    def __call__(
        self,
        logits: Tensor,  # [L, B, Q, C], fp32
        boxes: Tensor,  # [L, B, Q, 4], fp32
        targets: Targets,
    ) -> Tensor:  # [L, T, Q]
        pairs = boxes, targets.image, targets.labels, targets.boxes
        weights = self.cls.weight, self.l1.weight, self.iou.weight
        if isinstance(self.cls, FocalLossCost):
            return matching_cost(logits, *pairs, *weights, self.cls.alpha, self.cls.gamma)
        return matching_cost(logits.softmax(-1), *pairs, *weights, focal=False)
