"""Matching costs, each for all layers, images and targets at once.

A cost takes ``Pairs`` and gives a new tensor [L, T, Q].
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

    @property
    def index_in_image(self) -> Tensor:
        """[T] place of each target among those of its image."""
        return torch.cat([torch.arange(count) for count in self.counts]).to(self.image.device, non_blocking=True)

    def at_most(self, limit: int) -> 'Targets':
        """So many of each image's targets, by chance where it has more."""
        if max(self.counts, default=0) <= limit:
            return self
        chosen = [first + torch.randperm(count)[:limit] for first, count in zip(self.offsets, self.counts)]
        index = torch.cat(chosen).to(self.image.device, non_blocking=True)
        counts = [min(count, limit) for count in self.counts]
        return Targets(self.boxes[index], self.labels[index], self.image[index], counts, self.sizes)

    def repeat(self, times: int) -> 'Targets':
        """Each target ``times`` times."""
        boxes, labels, image = (x.repeat_interleave(times, 0) for x in (self.boxes, self.labels, self.image))
        return Targets(boxes, labels, image, [times * count for count in self.counts], self.sizes)


class Predictions:
    """Predictions of all layers and images; boxes as planes, so that a cost reads whole rows of queries.

    Attributes:
        logits: [L, B, Q, C], fp32.
        cxcywh, xyxy: [4, L, B, Q] boxes in [0, 1], fp32.
        log_sum: [L, B, Q] logarithm of the softmax's normaliser.
    """

    def __init__(self, logits: Tensor, boxes: Tensor):
        self.logits = logits
        self.cxcywh = boxes.movedim(-1, 0).contiguous()
        self._xyxy = self._log_sum = None  # not cached_property: torch.compile does not trace its lock (Python < 3.12)

    @property
    def xyxy(self) -> Tensor:
        if self._xyxy is None:
            self._xyxy = _corners(self.cxcywh)
        return self._xyxy

    @property
    def log_sum(self) -> Tensor:
        if self._log_sum is None:
            self._log_sum = self.logits.logsumexp(-1)
        return self._log_sum


class Pairs:
    """T targets, each with all queries of its image; no pair across images is ever computed.

    Args:
        predictions: of all layers and images.
        targets: the ground truth.
    """

    def __init__(self, predictions: Predictions, targets: Targets):
        self.predictions = predictions
        self.image, self.labels, self.boxes = targets.image, targets.labels, targets.boxes

    def of_image(self, planes: Tensor) -> Tensor:  # [..., B, Q] -> [..., T, Q]
        """What belongs to each target's image."""
        return planes.index_select(-2, self.image)

    def class_logits(self) -> Tensor:
        """Logit of each target's class, [L, T, Q]."""
        logits = self.predictions.logits.transpose(2, 3)
        layer = torch.arange(len(logits), device=logits.device)[:, None]
        return logits[layer, self.image, self.labels]

    def box_planes(self, box_format: str) -> tuple[Tensor, Tensor]:
        """Predicted boxes [4, L, T, Q] and targets [4, T, 1] as 'cxcywh' or 'xyxy'."""
        target = self.boxes.T[..., None]
        if box_format == 'xyxy':
            target = _corners(target)
        return self.of_image(getattr(self.predictions, box_format)), target


def _corners(boxes: Tensor) -> Tensor:  # [4, ...]
    centre, half = boxes[:2], boxes[2:] / 2
    return torch.cat([centre - half, centre + half])


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
        binary_input: mmdet's switch to masks, which are not matched here.
        weight: weight of this cost.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        eps: float = 0.0,
        binary_input: bool = False,
        weight: float = 1.0,
    ):
        super().__init__(weight)
        if binary_input:
            raise ValueError('FocalLossCost: binary_input=True compares masks; queries are matched by class and box')
        self.alpha = alpha
        self.gamma = gamma

    def __call__(self, pairs: Pairs) -> Tensor:
        x = pairs.class_logits()
        p = x.sigmoid()
        loss = F.softplus(-x)  # -log(p)
        positive = self.alpha * (1 - p) ** self.gamma * loss
        negative = (1 - self.alpha) * p**self.gamma * (x + loss)
        return (positive - negative) * self.weight


@TASK_UTILS.register_module()
class ClassificationCost(MatchCost):
    """Minus the softmax probability of the target's class (DETR, eq. 2)."""

    def __call__(self, pairs: Pairs) -> Tensor:
        log_sum = pairs.of_image(pairs.predictions.log_sum)
        return (pairs.class_logits() - log_sum).exp() * -self.weight


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
        pred, target = pairs.box_planes('cxcywh' if self.box_format == 'xywh' else 'xyxy')
        return sum((p - t).abs_() for p, t in zip(pred, target)) * self.weight


@TASK_UTILS.register_module()
class IoUCost(MatchCost):
    """Minus the (generalised) IoU; it does not change with the image's size, so normalised boxes do.

    Args:
        iou_mode: 'giou', 'iou', or 'iof', the share of the predicted box that lies in the target.
        weight: weight of this cost.
    """

    def __init__(self, iou_mode: str = 'giou', weight: float = 1.0):
        super().__init__(weight)
        if iou_mode not in ('giou', 'iou', 'iof'):
            raise ValueError(f"iou_mode must be 'giou', 'iou' or 'iof', got {iou_mode!r}")
        self.iou_mode = iou_mode

    def __call__(self, pairs: Pairs) -> Tensor:
        (x1, y1, x2, y2), (tx1, ty1, tx2, ty2) = pairs.box_planes('xyxy')
        tiny = torch.finfo(x1.dtype).tiny  # far below any normalised area; a box without area has an IoU of 0
        width = (torch.minimum(x2, tx2) - torch.maximum(x1, tx1)).clamp_(min=0)
        height = (torch.minimum(y2, ty2) - torch.maximum(y1, ty1)).clamp_(min=0)
        intersection = width * height
        area = (x2 - x1) * (y2 - y1)
        if self.iou_mode == 'iof':
            return intersection / area.clamp_(min=tiny) * -self.weight
        union = (area + (tx2 - tx1) * (ty2 - ty1) - intersection).clamp_(min=tiny)
        iou = intersection / union
        if self.iou_mode == 'giou':
            width = torch.maximum(x2, tx2) - torch.minimum(x1, tx1)
            height = torch.maximum(y2, ty2) - torch.minimum(y1, ty1)
            iou += union / (width * height).clamp_(min=tiny) - 1
        return iou * -self.weight
