"""Scores of duplicates (SOLOv2's Matrix NMS) in the head's detections."""

import math

import pytest
import torch
from mmdet.models.layers import mask_matrix_nms

from mmdet_ddetr.heads import SetHead
from mmdet_ddetr.layers import matrix_nms

SIGMA = 2.0


def decayed(boxes, scores, labels, sigma=SIGMA):
    """By the letter of the paper's formula: scalars, one image."""

    def iou(a, b):
        w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
        h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return w * h / (sum(areas) - w * h)

    def overlap(i, j):  # of i with one before it
        return iou(boxes[i], boxes[j]) if labels[i] == labels[j] else 0.0

    result = []
    for i, score in enumerate(scores):
        decays = [1.0]
        for j in range(i):
            duplicate = max((overlap(j, k) for k in range(j)), default=0.0)
            decays.append(math.exp(-sigma * overlap(i, j) ** 2) / math.exp(-sigma * duplicate**2))
        result.append(score * min(decays))
    return result


def random_boxes(N, images=2, classes=2):
    rng = torch.Generator().manual_seed(N)
    corner = torch.randint(0, 6, (images, N, 2), generator=rng)
    size = torch.randint(1, 6, (images, N, 2), generator=rng)
    scores = torch.rand(images, N, generator=rng).sort(descending=True)[0]
    labels = torch.randint(classes, (images, N), generator=rng)
    return torch.cat([corner, corner + size], -1).float(), scores, labels


def test_by_hand():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 4], [4, 4, 6, 6]])[None]
    scores, labels = torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.tensor([[0, 0, 1, 0]])
    found = matrix_nms(boxes, scores, labels, SIGMA)
    # the second overlaps the first by half; the third is of another class; the fourth is elsewhere
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.8 * math.exp(-2 * 0.5**2), 0.7, 0.6]]))


@pytest.mark.parametrize('N', [1, 2, 7, 40])
def test_formula(N):
    boxes, scores, labels = random_boxes(N)
    found = matrix_nms(boxes, scores, labels, SIGMA)
    for image in range(2):
        expected = decayed(boxes[image].tolist(), scores[image].tolist(), labels[image].tolist())
        torch.testing.assert_close(found[image], torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.float64])
def test_small_boxes(dtype):
    """Far below a millionth of the image, and without any area."""
    boxes = torch.tensor([[0.5, 0.5, 0.5005, 0.5005]] * 2 + [[0.25, 0.25, 0.25, 0.25]] * 2, dtype=dtype)[None]
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]], dtype=dtype)
    found = matrix_nms(boxes, scores, torch.zeros(1, 4, dtype=torch.long), SIGMA)
    expected = torch.tensor([[0.9, 0.8 * math.exp(-SIGMA), 0.7, 0.6]], dtype=dtype)
    torch.testing.assert_close(found, expected)


def test_as_mmdets_on_masks():
    """mmdet's, of SOLOv2, on masks of the same boxes."""
    boxes, scores, labels = random_boxes(30, images=1)
    masks = torch.zeros(30, 12, 12)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes[0].int().tolist()):
        mask[y1:y2, x1:x2] = 1
    theirs, _, _, kept = mask_matrix_nms(masks, labels[0], scores[0], sigma=SIGMA)
    ours = matrix_nms(boxes, scores, labels, SIGMA)[0]
    torch.testing.assert_close(ours[kept], theirs, rtol=1e-5, atol=1e-6)


def test_detections_of_the_head():
    """Sorted by their new scores, with their own box, label and query."""
    head = SetHead(num_classes=2, embed_dims=8, num_pred_layer=1, test_cfg=dict(max_per_img=6, matrix_nms=SIGMA))
    plain = SetHead(num_classes=2, embed_dims=8, num_pred_layer=1, test_cfg=dict(max_per_img=6))
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]])
    logits = torch.tensor([[3.0, -4], [2, -5], [1, -6]])
    sizes = torch.tensor([[100.0, 50, 100, 50]])
    before = plain.best(logits[None], boxes[None], sizes)
    corners, scores, labels, query = head.best(logits[None], boxes[None], sizes)
    assert before[3][0, :3].tolist() == [0, 1, 2]
    assert query[0, :3].tolist() == [0, 2, 1] and labels[0, :3].tolist() == [0, 0, 0]
    twin = torch.tensor(2.0).sigmoid() * math.exp(-SIGMA)
    torch.testing.assert_close(scores[0, :3], torch.stack([*torch.tensor([3.0, 1.0]).sigmoid(), twin]))
    torch.testing.assert_close(corners[0, 1], torch.tensor([15.0, 7.5, 25, 12.5]))
    assert (scores.diff() <= 0).all() and scores.shape == before[1].shape


@pytest.mark.parametrize('sigma', [0, -1.0])
def test_sigma_is_checked(sigma):
    with pytest.raises(ValueError, match=rf'test_cfg.matrix_nms must be a number above 0, .* got {sigma}'):
        SetHead(num_classes=2, embed_dims=8, test_cfg=dict(matrix_nms=sigma))
