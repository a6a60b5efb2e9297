"""Which cells are to find which target."""

import pytest
import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps

from mmdet_ddetr.task_modules import Targets, task_aligned_match


def make_targets(boxes, labels, image, images):
    image = torch.tensor(image, dtype=torch.long)
    counts = [int((image == i).sum()) for i in range(images)]
    return Targets(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.long), image, counts, torch.ones(images, 4)
    )


def grid(side):
    """[side^2, 2] centres of a map's cells."""
    along = (torch.arange(side) + 0.5) / side
    return torch.stack([along.repeat(side), along.repeat_interleave(side)], -1)


def pairs(match):
    assert match.per_layer == len(match.target) == len(match.layer) and not match.layer.any()
    return sorted(zip(match.image.tolist(), match.query.tolist(), match.target.tolist()))


def by_loops(logits, boxes, centres, usable, targets, topk, alpha, beta):
    """The definition, a cell and a target at a time."""
    claims = {}
    for t, (box, label, image) in enumerate(zip(targets.boxes, targets.labels, targets.image.tolist())):
        corners = bbox_cxcywh_to_xyxy(box)
        found = []
        for s in range(logits.shape[1]):
            x, y = centres[image, s]
            if not usable[image, s] or not (corners[0] < x < corners[2] and corners[1] < y < corners[3]):
                continue
            iou = bbox_overlaps(bbox_cxcywh_to_xyxy(boxes[image, s])[None], corners[None]).item()
            alignment = logits[image, s, label].sigmoid().item() ** alpha * iou**beta
            if alignment > 0:
                found.append((alignment, iou, s))
        for _, iou, s in sorted(found, reverse=True)[:topk]:
            claims.setdefault((image, s), []).append((iou, -t))
    return sorted((image, s, -max(wanted)[1]) for (image, s), wanted in claims.items())


@pytest.mark.parametrize('seed', range(5))
def test_as_by_loops(seed):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    B, side, C, T = 3, 6, 4, 9
    S = side**2
    centres = grid(side).expand(B, S, 2)
    logits = 2 * uniform(B, S, C) - 1
    boxes = torch.cat([centres + 0.1 * (uniform(B, S, 2) - 0.5), 0.1 + 0.5 * uniform(B, S, 2)], -1)
    usable = uniform(B, S) < 0.8
    image = sorted((2 * uniform(T)).long().tolist())  # none in the last image
    targets = make_targets(
        torch.cat([uniform(T, 2), 0.1 + 0.5 * uniform(T, 2)], 1).tolist(), (C * uniform(T)).long().tolist(), image, B
    )
    for topk, alpha, beta in ((9, 1.0, 6.0), (2, 0.5, 2.0), (100, 1.0, 6.0)):
        match = task_aligned_match(logits, boxes, centres, usable, targets, topk, alpha, beta)
        assert pairs(match) == by_loops(logits, boxes, centres, usable, targets, topk, alpha, beta)
        assert len(match.target) > 3


def test_class_and_place_both_count():
    """Four cells in a box. Alignment of score 0.5, IoU 1: 0.5; of 0.9, 0.8: 0.236; of 0.99, 0.5: 0.015."""
    centres = grid(2)[None]
    logits = torch.tensor([0.5, 0.9, 0.99, 0.1]).logit().view(1, 4, 1)
    target = [0.5, 0.5, 1.0, 1.0]
    boxes = torch.tensor([[target, [0.5, 0.5, 1.0, 0.8], [0.5, 0.5, 0.5, 1.0], [0.5, 0.5, 0.1, 0.1]]])
    targets = make_targets([target], [0], [0], 1)
    usable = torch.ones(1, 4, dtype=torch.bool)
    for topk, cells in enumerate([[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]], 1):
        match = task_aligned_match(logits, boxes, centres, usable, targets, topk)
        assert pairs(match) == [(0, cell, 0) for cell in cells]
    usable[0, 0] = False
    assert pairs(task_aligned_match(logits, boxes, centres, usable, targets, 1)) == [(0, 1, 0)]


def test_a_cell_has_one_target():
    """That which its box overlaps most; of two targets with one box, the first."""
    centres, usable = torch.full((1, 1, 2), 0.5), torch.ones(1, 1, dtype=torch.bool)
    boxes, logits = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), torch.zeros(1, 1, 2)
    large, same = [0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.4, 0.4]
    for wanted in ([large, same], [large, same, same]):
        targets = make_targets(wanted, [0, 1, 0][: len(wanted)], [0] * len(wanted), 1)
        assert pairs(task_aligned_match(logits, boxes, centres, usable, targets)) == [(0, 0, 1)]


def test_nothing_to_find():
    """No targets; a target between the centres of the cells."""
    centres, usable = grid(4).expand(2, 16, 2), torch.ones(2, 16, dtype=torch.bool)
    boxes, logits = torch.cat([centres, torch.full((2, 16, 2), 0.2)], -1), torch.zeros(2, 16, 3)
    for targets in (make_targets([], [], [], 2), make_targets([[0.25, 0.25, 0.1, 0.1]], [1], [1], 2)):
        assert pairs(task_aligned_match(logits, boxes, centres, usable, targets)) == []
