"""Matching costs, each for all layers and images at once.

A cost takes ``logits [L, T, Q, C]``-like pairs already gathered per target (see ``Pairs``) and gives ``[L, T, Q]``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor

from mmdet_ddetr.registry import TASK_UTILS


@dataclass
class Targets:
    """Ground truth of a batch, images one after the other.

    Attributes:
        boxes: [T, 4] (cx, cy, w, h), normalised by the unpadded image, fp32.
        labels: [T] class indices.
        image: [T] index of each target's image in the batch.
        counts: targets per image, on the host; they sum to T.
        sizes: [B, 4] (w, h, w, h) of the unpadded images in pixels.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor
    counts: list[int]
    sizes: Tensor

    @property
    def offsets(self) -> list[int]:
        """First target of each image."""
        offsets, total = [], 0
        for count in self.counts:
            offsets.append(total)
            total += count
        return offsets


@dataclass
class Pairs:
    """Every (target, query) pair within an image; no pair across images is ever computed.

    Attributes:
        logits: [L, B, Q, C] of all layers, fp32.
        pred: [L, T, Q, 4] predicted boxes of each target's image, (cx, cy, w, h) in [0, 1], fp32.
        targets: the ground truth.
    """

    logits: Tensor
    pred: Tensor
    targets: Targets

    def class_logits(self) -> Tensor:
        """Logit of each target's class, [L, T, Q]."""
        return self.logits[:, self.targets.image, :, self.targets.labels].transpose(0, 1)


class MatchCost:
    """Base: a weighted cost."""

    def __init__(self, weight: float = 1.0):
        self.weight = weight


@TASK_UTILS.register_module()
class FocalLossCost(MatchCost):
    """Focal loss of the target's class as positive minus as negative (official ``matcher.py``).

    Written with log-sigmoid, so that it is finite for every finite logit; ``log(1 - p + eps)`` overflows in 16 bits.

    Args:
        alpha, gamma: of the focal loss.
        eps: accepted for mmdet's configs; log-sigmoid needs none.
        weight: weight of this cost.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, eps: float = 0.0, weight: float = 1.0):
        super().__init__(weight)
        self.alpha = alpha
        self.gamma = gamma

    def __call__(self, pairs: Pairs) -> Tensor:
        x = pairs.class_logits()
        p = x.sigmoid()
        positive = -self.alpha * (1 - p) ** self.gamma * F.logsigmoid(x)
        negative = -(1 - self.alpha) * p**self.gamma * F.logsigmoid(-x)
        return (positive - negative) * self.weight


@TASK_UTILS.register_module()
class ClassificationCost(MatchCost):
    """Minus the softmax probability of the target's class (DETR, eq. 2)."""

    def __call__(self, pairs: Pairs) -> Tensor:
        log_sum = pairs.logits.logsumexp(-1)[:, pairs.targets.image]  # [L, T, Q]
        return -(pairs.class_logits() - log_sum).exp() * self.weight


@TASK_UTILS.register_module()
class BBoxL1Cost(MatchCost):
    """L1 distance of normalised boxes.

    Args:
        box_format: 'xywh' compares (cx, cy, w, h), 'xyxy' compares corners.
        weight: weight of this cost.
    """

    def __init__(self, box_format: str = 'xyxy', weight: float = 1.0):
        super().__init__(weight)
        if box_format not in ('xyxy', 'xywh'):
            raise ValueError(f"box_format must be 'xyxy' or 'xywh', got {box_format!r}")
        self.box_format = box_format

    def __call__(self, pairs: Pairs) -> Tensor:
        pred, target = pairs.pred, pairs.targets.boxes[:, None]
        if self.box_format == 'xyxy':
            pred, target = bbox_cxcywh_to_xyxy(pred), bbox_cxcywh_to_xyxy(target)
        return (pred - target).abs().sum(-1) * self.weight


@TASK_UTILS.register_module()
class IoUCost(MatchCost):
    """Minus the (generalised) IoU; it does not change with the image's size, so normalised boxes do.

    Args:
        iou_mode: 'giou' or 'iou'.
        weight: weight of this cost.
    """

    def __init__(self, iou_mode: str = 'giou', weight: float = 1.0):
        super().__init__(weight)
        if iou_mode not in ('giou', 'iou'):
            raise ValueError(f"iou_mode must be 'giou' or 'iou', got {iou_mode!r}")
        self.iou_mode = iou_mode

    def __call__(self, pairs: Pairs) -> Tensor:
        L, T, Q, _ = pairs.pred.shape
        pred = bbox_cxcywh_to_xyxy(pairs.pred)
        target = bbox_cxcywh_to_xyxy(pairs.targets.boxes)[None, :, None].expand(L, T, 1, 4)
        # eps far below any normalised area: mmdet's 1e-6 is meant for pixels
        overlap = bbox_overlaps(pred, target, mode=self.iou_mode, eps=torch.finfo(torch.float32).tiny)
        return -overlap.squeeze(-1) * self.weight
