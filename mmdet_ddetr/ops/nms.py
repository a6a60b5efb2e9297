"""Non-maximum suppression: the public function over the op, which runs on the CPU wherever the boxes are."""

import numpy as np
import torch
from torch import Tensor

from ._checks import check_nms
from ._load import LIBRARY


def nms_keep(boxes: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Which boxes greedy non-maximum suppression keeps.

    Args:
        boxes: [N, 4] fp32 or fp64 (x1, y1, x2, y2) in pixels, the highest score first.
        iou_threshold: a box that overlaps an earlier kept one by a greater IoU is dropped.
        offset: 1 where x2 and y2 are the last pixel of the box, 0 where they are its edge.

    Returns:
        [N] bool. A box with a coordinate that is not a number is kept, and drops none.

    Raises:
        RuntimeError: shape, dtype or offset do not fit.
    """
    return torch.ops.mmdet_ddetr.nms_keep(boxes, iou_threshold, offset)


@torch.library.register_fake('mmdet_ddetr::nms_keep', lib=LIBRARY)
def _fake(boxes, iou_threshold, offset=0):
    check_nms(boxes, offset)
    return boxes.new_empty(boxes.shape[0], dtype=torch.bool)


def _without_kernel(boxes, iou_threshold, offset=0):
    """By way of the host: the steps follow each other, and what is compared is little."""
    check_nms(boxes, offset)
    if not boxes.is_cpu:
        return nms_keep(boxes.cpu(), iou_threshold, offset).to(boxes.device)
    with np.errstate(invalid='ignore'):
        return _by_numpy(boxes, iou_threshold, offset)


def _by_numpy(boxes, iou_threshold, offset):
    corners = boxes.detach().numpy().T
    x1, y1, x2, y2 = corners
    corners = np.concatenate((corners, [(x2 - x1 + offset) * (y2 - y1 + offset)]))
    keep, rest = np.zeros(len(boxes), bool), np.arange(len(boxes))
    while rest.size:
        keep[rest[0]] = True
        remains = ~(iou_with_first(corners, offset) > iou_threshold)
        remains[0] = False
        rest, corners = rest[remains], corners[:, remains]
    return torch.from_numpy(keep)


def iou_with_first(corners: np.ndarray, offset: int) -> np.ndarray:  # [5, N] x1, y1, x2, y2, area -> [N]
    """IoU of each box with the first one."""
    x1, y1, x2, y2, area = corners
    width = np.minimum(x2, x2[0]) - np.maximum(x1, x1[0]) + offset
    height = np.minimum(y2, y2[0]) - np.maximum(y1, y1[0]) + offset
    overlap = width.clip(min=0) * height.clip(min=0)
    union = area + area[0] - overlap
    return overlap / np.where(union <= 0, 1, union)  # two boxes without area do not overlap


LIBRARY.impl('nms_keep', _without_kernel, 'CompositeExplicitAutograd')
