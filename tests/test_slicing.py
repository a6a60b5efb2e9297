"""Tiles cover an image, and what is found in several of them is found once, where it is."""

import numpy as np
import pytest

from mmdet_ddetr.apis.slicing import Sliced, is_cut, merged, tiles_of
from mmdet_ddetr.export.runtime import Detections


@pytest.mark.parametrize('size', [(100, 100), (101, 399), (640, 64), (30, 1000), (250, 100)])
@pytest.mark.parametrize('overlap', [0, 0.2, 0.5])
def test_tiles_cover_the_image(size, overlap):
    """Of one size, inside, no pixel left out, and neighbours share what they should."""
    tiles = tiles_of(size, 100, overlap)
    seen = np.zeros(size, int)
    for x1, y1, x2, y2 in tiles:
        seen[y1:y2, x1:x2] += 1
    assert seen.all() and {(y2 - y1, x2 - x1) for x1, y1, x2, y2 in tiles} == {(min(size[0], 100), min(size[1], 100))}
    starts = sorted({x1 for x1, *_ in tiles})
    assert all(after - before <= 100 * (1 - overlap) + 1 for before, after in zip(starts, starts[1:]))
    fewer = np.ceil((size[1] - 100) / (100 * (1 - overlap))) if size[1] > 100 else 0
    assert len(starts) == fewer + 1  # no more than are needed


def test_tiles_by_hand():
    assert tiles_of((100, 260), 100, 0.2) == [(0, 0, 100, 100), (80, 0, 180, 100), (160, 0, 260, 100)]
    assert tiles_of((60, 90), 100, 0.2) == [(0, 0, 90, 60)]


def test_cut_boxes_end_with_their_tile():
    tile, size = (80, 0, 180, 100), (100, 260)
    boxes = np.array([[80, 20, 120, 40], [100, 0, 120, 40], [90, 5, 179, 30], [90, 60, 120, 100], [90, 5, 170, 90]])
    assert is_cut(boxes, tile, size).tolist() == [True, False, True, False, False]  # the image ends above and below


def test_merged_by_hand():
    boxes = np.array(
        [
            [0, 0, 40, 40],  # whole
            [0, 0, 19, 40],  # its left part, which scores better: IoU 0.475
            [1, 0, 41, 40],  # the same again: IoU 0.95
            [0, 0, 40, 40],  # of another class
            [100, 0, 140, 40],  # cut, and nothing else shows it
            [15, 0, 40, 28],  # in the first, and not cut: another object
        ],
        float,
    )
    found = merged(
        boxes,
        scores=np.array([0.6, 0.9, 0.5, 0.4, 0.7, 0.3]),
        labels=np.array([1, 1, 1, 0, 1, 1]),
        cut=np.array([False, True, False, False, True, False]),
    )
    assert found.scores.tolist() == [0.6, 0.4, 0.35, 0.3]  # of a cut one it counts half
    assert found.boxes.tolist() == boxes[[0, 3, 4, 5]].tolist() and found.labels.tolist() == [1, 0, 1, 1]
    nothing = merged(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, bool))
    assert len(nothing.boxes) == 0


class Squares:
    """Finds every white square that is not cut smaller than 4 px, and only those of at most 60 px."""

    classes, threshold = ('square',), 0.3

    def __init__(self, batch_size=None):
        self.batch_size, self.shapes = batch_size, []

    def __call__(self, images, threshold):
        import cv2

        self.shapes.append([image.shape[:2] for image in images])
        assert self.batch_size in (None, len(images))
        found = []
        for image in images:
            _, _, stats, _ = cv2.connectedComponentsWithStats((image[..., 0] > 127).astype(np.uint8))
            boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in stats[1:] if min(w, h) >= 4], np.float32)
            boxes = boxes.reshape(-1, 4)
            boxes = boxes[(boxes[:, 2] - boxes[:, 0] <= 60)] if max(image.shape) <= 100 else boxes[:0]
            found.append(Detections(boxes, np.full(len(boxes), 0.9, np.float32), np.zeros(len(boxes), int)))
        return found


def scene():
    image, boxes = np.zeros((250, 430, 3), np.uint8), []
    for x, y, side in ((5, 5, 10), (95, 90, 18), (160, 40, 19), (300, 200, 15), (415, 235, 15), (76, 150, 8)):
        image[y : y + side, x : x + side] = 255
        boxes.append([x, y, x + side, y + side])
    return image, boxes


@pytest.mark.parametrize('batch_size', [None, 4])
def test_each_object_is_found_once(batch_size):
    """Squares inside of tiles, on their borders and in corners, none larger than the overlap."""
    image, boxes = scene()
    detector = Squares(batch_size)
    assert len(detector([image] * (batch_size or 1), 0)[0].boxes) == 0  # too large for it
    (found,) = Sliced(detector, 100, 0.2, tiles=7)([image], 0.3)
    assert sorted(found.boxes.tolist()) == sorted(boxes)
    assert detector.shapes[-1][0] == image.shape[:2]  # the whole image comes last
    assert [len(shapes) for shapes in detector.shapes[1:]] == ([7, 7, 4, 1] if batch_size is None else [4] * 6)


def test_small_images_are_not_sliced():
    detector = Squares()
    image = scene()[0][:100, :100]
    (found,) = Sliced(detector, 100)([image])
    assert detector.shapes == [[(100, 100)]] and len(found.boxes) == 2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(side=8), 'side of the tiles must be at least 16 px, got 8'),
        (dict(side=64, overlap=0.95), 'overlap of the tiles must be a number from 0 to below 0.9, got 0.95'),
        (dict(side=64, overlap=-0.1), 'overlap of the tiles'),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sliced(Squares(), **arguments)
