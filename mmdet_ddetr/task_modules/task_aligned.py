"""One-to-many assignment of cells to targets (TOOD, Feng et al., ICCV 2021, arXiv:2108.07755, section 3.3)."""

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor

from .hungarian_assigner import Match
from .match_costs import Targets


@torch.no_grad()
def task_aligned_match(
    logits: Tensor,  # [B, S, C]
    boxes: Tensor,  # [B, S, 4] (cx, cy, w, h) in [0, 1]
    centres: Tensor,  # [B, S, 2] (x, y) in [0, 1], of the cells
    usable: Tensor,  # [B, S]
    targets: Targets,
    topk: int = 9,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Match:
    """The cells that are to find each target: those within it that are best in class and place together.

    A cell's alignment with a target is score^alpha IoU^beta. A target gets the best ``topk`` of the usable cells whose
    centre lies in its box, or fewer; a cell that several want goes to the one that its box overlaps most.

    Returns:
        cells as the queries of a single layer. The host waits for their number.
    """
    S = logits.shape[1]
    image = targets.image
    corners = bbox_cxcywh_to_xyxy(targets.boxes)[:, None]  # [T, 1, 4]
    centres = centres[image]  # [T, S, 2]
    inside = ((centres > corners[..., :2]) & (centres < corners[..., 2:])).all(-1) & usable[image]
    overlap = bbox_overlaps(bbox_cxcywh_to_xyxy(boxes)[image], corners).squeeze(-1)  # [T, S]
    score = logits.sigmoid()[image, :, targets.labels]  # [T, S]
    alignment = (score**alpha * overlap**beta).masked_fill(~inside, 0.0)
    best, cells = alignment.topk(min(topk, S), 1)
    wanted = torch.zeros_like(inside).scatter_(1, cells, best > 0)

    claim = overlap.masked_fill(~wanted, -1.0)
    cell = (image[:, None] * S + torch.arange(S, device=image.device)).flatten()  # [T*S], of the batch
    strongest = claim.new_full((len(logits) * S,), -1.0).scatter_reduce_(0, cell, claim.flatten(), 'amax')
    wanted &= claim == strongest[cell].view_as(claim)
    target, query = wanted.nonzero(as_tuple=True)
    # equal claims, of targets with the same box: the first one's
    first = torch.full_like(strongest, len(image), dtype=torch.long)
    flat = image[target] * S + query
    kept = first.scatter_reduce_(0, flat, target, 'amin')[flat] == target
    target, query = target[kept], query[kept]
    return Match(torch.zeros_like(query), image[target], query, target, per_layer=len(query))
