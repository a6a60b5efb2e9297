"""Large images with small objects: detect in overlapping tiles, and merge what is found twice."""

from collections.abc import Sequence

import numpy as np
import torch

from ..export.runtime import Detections
from ..ops import nms_keep

TOUCHES = 2.0  # px between a box and the side of its tile from which on the object may go on behind it
CUT = 0.5  # factor of the score of such a box: it is likely a part, and often scores better than the whole
SAME = 0.5  # IoU from which on two boxes are of one object
PART = 0.8  # share of a cut box that lies in another, from which on it is a part of that


def tiles_of(size: tuple[int, int], side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Squares that cover an image, row by row.

    Args:
        size: (h, w) of the image in px.
        side: of a tile in px; where the image is smaller, a tile ends with it.
        overlap: share of a tile that lies in the next one, at least.

    Returns:
        (x1, y1, x2, y2) of each, all of one size and at equal distances.
    """
    rows, columns = (_starts(length, side, overlap) for length in size)
    height, width = (min(length, side) for length in size)
    return [(x, y, x + width, y + height) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    count = 1 + max(int(np.ceil((length - side) / max(side * (1 - overlap), 1))), 0)
    return np.linspace(0, max(length - side, 0), count).round().astype(int).tolist()


class Sliced:
    """A detector that looks at tiles of each image, and at the image as a whole for what is larger than a tile.

    Boxes of one class that are found more than once become one, see :func:`merged`. Masks are left out.

    Args:
        detector: see :class:`~mmdet_ddetr.apis.detect_files.Detector`.
        side: of the tiles in px. Objects in them should be as large as those that the detector learnt from: try the
            size of the training's images.
        overlap: share of a tile, 0 to below 1; an object that is smaller than the overlap is whole in some tile.
        tiles: at once, where the detector does not take a fixed number.
        whole: look at the whole image, too.

    Raises:
        ValueError: an argument is out of its range; names it.
    """

    batch_size = None

    def __init__(self, detector, side: int, overlap: float = 0.2, tiles: int = 8, whole: bool = True):
        if side < 16:
            raise ValueError(f'side of the tiles must be at least 16 px, got {side}')
        if not 0 <= overlap < 0.9:
            raise ValueError(f'overlap of the tiles must be a number from 0 to below 0.9, got {overlap:g}')
        self.detector, self.side, self.overlap, self.tiles, self.whole = detector, side, overlap, tiles, whole
        self.classes, self.threshold = detector.classes, detector.threshold

    def __call__(self, images: Sequence[np.ndarray], threshold: float = 0.0) -> list[Detections]:
        """As the detector; each image goes through it on its own."""
        return [self._detect(image, threshold) for image in images]

    def _detect(self, image: np.ndarray, threshold: float) -> Detections:
        size = image.shape[:2]
        tiles = tiles_of(size, self.side, self.overlap)
        found = self._in(image, tiles, threshold)
        if self.whole and len(tiles) > 1:
            tiles = [*tiles, (0, 0, size[1], size[0])]
            found += self._in(image, tiles[-1:], threshold)
        boxes = [part.boxes + np.float32(tile[:2] * 2) for part, tile in zip(found, tiles)]
        cut = np.concatenate([is_cut(box, tile, size) for box, tile in zip(boxes, tiles)])
        scores, labels = (np.concatenate([getattr(part, name) for part in found]) for name in ('scores', 'labels'))
        return merged(np.concatenate(boxes), scores, labels, cut).above(threshold)

    def _in(self, image, tiles, threshold) -> list[Detections]:
        count = self.detector.batch_size or self.tiles
        found = []
        for start in range(0, len(tiles), count):
            pixels = [image[y1:y2, x1:x2] for x1, y1, x2, y2 in tiles[start : start + count]]
            missing = (self.detector.batch_size or 0) - len(pixels)
            found += self.detector(pixels + pixels[-1:] * missing, threshold)[: len(pixels)]
        return found


def is_cut(
    boxes: np.ndarray,  # [N, 4], (x1, y1, x2, y2) in px of the image
    tile: tuple[int, int, int, int],
    size: tuple[int, int],
) -> np.ndarray:  # [N] bool
    """Whether a box ends where its tile does, and the image (h, w) does not: it may be a part of an object."""
    inner = np.array([tile[0] > 0, tile[1] > 0, tile[2] < size[1], tile[3] < size[0]])
    return ((np.abs(boxes - np.array(tile)) <= TOUCHES) & inner).any(1)


def merged(
    boxes: np.ndarray,  # [N, 4], (x1, y1, x2, y2)
    scores: np.ndarray,  # [N]
    labels: np.ndarray,  # [N]
    cut: np.ndarray,  # [N] bool
) -> Detections:
    """One box for each object, by falling score.

    Greedily and in each class: the best box stands for all whose IoU with it is more than ``SAME``. Then those cut ones
    go that lie by ``PART`` or more in a better one. Scores of cut boxes count by ``CUT``, and are given so.
    """
    scores = np.where(cut, CUT * scores, scores).astype(scores.dtype)
    kept = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(-scores[own], kind='stable')]
        own = own[nms_keep(torch.from_numpy(boxes[own]), SAME).numpy()]
        parts = [
            place
            for place in np.flatnonzero(cut[own])
            if (_intersections(boxes[own[place]], boxes[own[:place]]) >= PART * _area(boxes[own[place]])).any()
        ]
        kept.append(np.delete(own, parts))
    kept = np.concatenate([*kept, np.zeros(0, int)])
    kept = kept[np.argsort(-scores[kept], kind='stable')]
    return Detections(boxes[kept], scores[kept], labels[kept])


def _area(box: np.ndarray) -> float:  # [4]
    return np.prod(np.maximum(box[2:] - box[:2], 0))


def _intersections(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:  # [4], [N, 4] -> [N]
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    return np.prod(np.maximum(sides, 0), 1)
