"""Copy-paste of boxes: more objects an image, in more places, for the same steps."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.structures.bbox import HorizontalBoxes

from ..registry import TRANSFORMS
from .errors import DataError

TRIES = 10  # to find a place for an object
VISIBLE = 0.5  # of an object that lies in another one's box: with so much of it in the copy, it keeps its label


@TRANSFORMS.register_module()
class PasteBoxes(BaseTransform):
    """Objects of other images of the data set, with all that is in their boxes, at random places.

    What else lies in such a box, a helmet in a person's, comes with its own box and label, if at least half of it does.

    After Cut, Paste and Learn (Dwibedi et al., ICCV 2017, arXiv:1708.01642) and Simple Copy-Paste (Ghiasi et al., CVPR
    2021, arXiv:2012.07177), which cut along masks. The other images, one for each object, go through the transforms
    before this one. Comes after ``LoadAnnotations``, in a data set of this package.

    Args:
        prob: share of the images that get any, in [0, 1].
        max_boxes: the most that one image gets; each number from 1 on is as likely.
        max_hidden: share of an object that each pasted one may cover, in [0, 1]. One that finds no such place is left
            out.
        min_side: px; smaller boxes are not pasted.
    """

    def __init__(self, prob: float = 0.5, max_boxes: int = 4, max_hidden: float = 0.3, min_side: int = 4):
        for name, value in dict(prob=prob, max_hidden=max_hidden).items():
            if not 0 <= value <= 1:
                raise ValueError(f'PasteBoxes: {name} must be a number from 0 to 1, got {value}')
        for name, value in dict(max_boxes=max_boxes, min_side=min_side).items():
            if value < 1:
                raise ValueError(f'PasteBoxes: {name} must be at least 1, got {value}')
        self.prob, self.max_boxes, self.max_hidden, self.min_side = prob, max_boxes, max_hidden, min_side
        self._dataset = self._before = None

    def look_into(self, dataset, before: Sequence[Callable]) -> None:
        """Take objects from there.

        Args:
            dataset: with ``get_data_info``.
            before: transforms that its images go through.
        """
        self._dataset, self._before = dataset, before

    def transform(self, results: dict) -> dict:
        if self._dataset is None:
            raise ValueError('PasteBoxes works in data sets of this package, such as mmdet_ddetr.CocoDataset')
        if 'gt_masks' in results:
            raise ValueError('PasteBoxes pastes boxes, and no masks: leave it out, or with_mask=True')
        if random.random() >= self.prob:
            return results
        image = results['img'].copy()
        boxes = list(results['gt_bboxes'].tensor.numpy())
        labels, crowd = list(results['gt_bboxes_labels']), list(results['gt_ignore_flags'])
        for _ in range(random.randint(1, self.max_boxes)):
            other = self._another()
            wanted = [i for i, ignored in enumerate(other['gt_ignore_flags'] if other else ()) if not ignored]
            if not wanted:
                continue
            i = random.choice(wanted)
            theirs = other['gt_bboxes'].tensor.numpy()
            theirs = theirs.clip(0, np.tile(other['img'].shape[1::-1], 2))  # data may have boxes that reach beyond
            x1, y1, x2, y2 = theirs[i].round().astype(int)
            patch = other['img'][y1:y2, x1:x2]
            box = self._place(patch.shape[:2], image.shape[:2], boxes)
            if box is None:
                continue
            image[box[1] : box[3], box[0] : box[2]] = patch
            shown = theirs.clip(np.tile([x1, y1], 2), np.tile([x2, y2], 2))
            copied = sides(shown).prod(1) >= VISIBLE * sides(theirs).prod(1).clip(min=1e-6)
            boxes += list((shown[copied] + np.tile([box[0] - x1, box[1] - y1], 2)).astype(np.float32))
            labels += list(other['gt_bboxes_labels'][copied])
            crowd += list(other['gt_ignore_flags'][copied])
        results.update(
            img=image,
            gt_bboxes=HorizontalBoxes(torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4))),
            gt_bboxes_labels=np.array(labels, np.int64),
            gt_ignore_flags=np.array(crowd, bool),
        )
        return results

    def _another(self) -> dict | None:
        """An image of the data set; None if it cannot be loaded, which its own turn tells."""
        results = self._dataset.get_data_info(random.randrange(len(self._dataset)))
        try:
            for transform in self._before:
                if results is not None:
                    results = transform(results)
        except DataError:
            return None
        return results

    def _place(self, size: tuple[int, int], whole: tuple[int, int], boxes: list[np.ndarray]) -> list[int] | None:
        """Where an object of (height, width) goes in an image of that, as (x1, y1, x2, y2)."""
        (h, w), (H, W) = size, whole
        if min(h, w) < self.min_side or h > H or w > W:
            return None
        there = np.array(boxes, np.float32).reshape(-1, 4)
        areas = sides(there).prod(1).clip(min=1e-6)
        for _ in range(TRIES):
            x, y = random.randint(0, W - w), random.randint(0, H - h)
            box = [x, y, x + w, y + h]
            covered = (np.minimum(there[:, 2:], box[2:]) - np.maximum(there[:, :2], box[:2])).clip(min=0).prod(1)
            if (covered <= self.max_hidden * areas).all():
                return box
        return None

    def __repr__(self) -> str:
        return (
            f'PasteBoxes(prob={self.prob}, max_boxes={self.max_boxes}, max_hidden={self.max_hidden}, '
            f'min_side={self.min_side})'
        )


def sides(boxes: np.ndarray) -> np.ndarray:  # [..., 4] -> [..., 2]
    return boxes[..., 2:] - boxes[..., :2]
