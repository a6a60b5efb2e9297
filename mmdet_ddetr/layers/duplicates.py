"""Boxes that may find the same object."""

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor


def matrix_nms(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Lower scores for duplicates, without a loop (SOLOv2, Wang et al., NeurIPS 2020, arXiv:2003.10152, section 3.3).

    A score decays with the box's overlap with a better one of the same class, and the less the more that one is a
    duplicate itself. No box is dropped.

    Args:
        boxes: [B, N, 4] (x1, y1, x2, y2), N > 0.
        scores, labels: [B, N], the best first.
        sigma: of the decay exp(-sigma IoU^2); SOLOv2's is 2.

    Returns:
        [B, N] scores, in the order of the boxes.
    """
    same = labels[:, :, None] == labels[:, None, :]
    # The area of an object in the distance may be below mmdet's eps, 1e-6 of the image; fp16 knows no smaller one.
    exact = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    overlap = bbox_overlaps(exact, exact, eps=1e-12).to(scores.dtype)
    overlap = (overlap * same).tril(-1)  # [B, N, N], of each with those before it
    duplicate = overlap.amax(2)  # [B, N]
    return scores * torch.exp(-sigma * (overlap**2 - duplicate[:, None] ** 2)).amin(2)
