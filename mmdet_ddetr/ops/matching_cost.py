"""Matching cost: the public function over the op, which has compiled kernels only."""

import torch
from torch import Tensor

from ._checks import check_matching_cost
from ._load import LIBRARY


def matching_cost(
    scores: Tensor,  # [L, B, Q, C]
    boxes: Tensor,  # [L, B, Q, 4]
    image: Tensor,  # [T]
    labels: Tensor,  # [T]
    targets: Tensor,  # [T, 4]
    cls_weight: float,
    l1_weight: float,
    giou_weight: float,
    alpha: float = 0.25,
    gamma: float = 2.0,
    focal: bool = True,
) -> Tensor:  # [L, T, Q]
    """What it costs to match each target with each query of its image, in one pass (DETR, section 3.1).

    The sum of ``cls_weight`` times the class cost, ``l1_weight`` times the L1 distance and ``-giou_weight`` times the
    generalised IoU of the boxes. It has no gradient.

    Args:
        scores: fp32; logits if ``focal``, else probabilities.
        boxes: fp32 (cx, cy, w, h) in [0, 1].
        image: int64, which of the B images each target belongs to.
        labels: int64 in 0..C-1.
        targets: fp32 boxes as ``boxes``.
        alpha, gamma: of the focal loss.
        focal: the class cost is the focal loss of the label's logit as the target's class minus that as any other
            (official ``matcher.py`` of Deformable DETR); otherwise minus the label's probability (DETR).

    Raises:
        RuntimeError: an argument's shape or dtype does not fit; on the CPU also an image or label out of range, whose
            cost on CUDA is NaN.
        NotImplementedError: there is no compiled kernel for the device; the sum of the costs in
            ``mmdet_ddetr.task_modules.match_costs`` is the same in plain PyTorch.
    """
    return torch.ops.mmdet_ddetr.matching_cost(
        scores, boxes, image, labels, targets, cls_weight, l1_weight, giou_weight, alpha, gamma, focal
    )


@torch.library.register_fake('mmdet_ddetr::matching_cost', lib=LIBRARY)
def _fake(scores, boxes, image, labels, targets, cls_weight, l1_weight, giou_weight, alpha, gamma, focal):
    check_matching_cost(scores, boxes, image, labels, targets, gamma)
    return scores.new_empty(scores.shape[0], image.shape[0], scores.shape[2])


# What is matched is a choice: the cost is a constant for autograd, whatever it is made of.
LIBRARY.impl('matching_cost', torch.library.fallthrough_kernel, 'Autograd')
