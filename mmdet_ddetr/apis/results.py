"""Detections in the forms that other programs take: COCO results, pandas, supervision."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet.structures import DetDataSample
from mmengine.logging import print_log

from ..datasets.coco_folder import read_coco
from ..datasets.errors import DataError
from ..export.runtime import Detections
from ..files import GrowingFile
from .outputs import Sources


class CocoResults:
    """A file in COCO's format of results, for ``COCO.loadRes`` and the evaluation servers.

    Args:
        path: of the file, a list of {image_id, category_id, bbox, score}, where bbox is [x, y, w, h] in px, and
            ``segmentation`` of detections with masks.
        annotations: the annotation file whose ``images`` and ``categories`` give the ids; no boxes are needed in it.
        classes: the detector's.

    Raises:
        DataError: the annotation file cannot be read or names two categories alike, or has none of the classes.
        FileExistsError: the annotation file would be replaced.
    """

    NAME = 'results.bbox.json'
    STARTS = (b'[\n{"image_id": ', b'[]\n')  # one of them begins each file that was written here

    def __init__(self, path: str | Path, annotations: str | Path, classes: Sequence[str]):
        source = Sources()
        source.add(annotations)
        source.check(path)
        coco = read_coco(Path(annotations), ('images', 'categories'))
        self.annotations = annotations
        self._images, self._short = {}, {}
        for image in coco['images']:
            name = Path(str(image.get('file_name')))
            self._images[name.parts] = image.get('id')
            self._short.setdefault(name.name, []).append(image.get('id'))
        names = [str(category.get('name')) for category in coco['categories']]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f'{annotations}: two categories are called {twice[0]!r}, so that no class has its id')
        ids = dict(zip(names, (category.get('id') for category in coco['categories'])))
        self._categories = [ids.get(name) for name in classes]
        if all(id is None for id in self._categories):
            raise DataError(
                f'{annotations} has none of the classes of the detector: it has {_few(names)}, the detector '
                f'{_few(classes)}'
            )
        if missing := [name for name in classes if name not in ids]:
            message = f'{annotations} has no category for {_few(missing)}: the COCO results leave them out'
            print_log(message, 'current', logging.WARNING)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file, self._before = GrowingFile(path, encoding='utf-8'), ''

    def add(self, path: str, found: Detections) -> None:
        """Append the detections of an image file; those of classes without a category are left out.

        Raises:
            DataError: the annotation file has no such image.
        """
        image = self._id_of(path)
        if not self._file.begun:
            self._file.write('[')
        for i, label in enumerate(found.labels):
            if self._categories[label] is None:
                continue
            x1, y1, x2, y2 = (float(x) for x in found.boxes[i])
            result = dict(
                image_id=image,
                category_id=self._categories[label],
                bbox=[round(x, 3) for x in (x1, y1, x2 - x1, y2 - y1)],
                score=round(float(found.scores[i]), 6),
            )
            if found.masks is not None:
                result['segmentation'] = _run_lengths(found.masks[i])
            self._file.write(f'{self._before}\n{json.dumps(result)}')
            self._before = ','

    def close(self, whole: bool = True) -> Path | None:
        """End the list, and give the file its name, if an image was added; see :meth:`GrowingFile.close`."""
        if self._file.begun:
            self._file.write('\n]\n' if self._before else ']\n')
        return self._file.close(whole)

    def _id_of(self, path: str) -> int:
        """Of the image whose file_name the path ends in, or else of the only one whose name is the same."""
        parts = Path(path).parts
        for start in range(len(parts)):
            if parts[start:] in self._images:
                return self._images[parts[start:]]
        ids = self._short.get(Path(path).name, [])
        if len(ids) != 1:
            raise DataError(
                f'{path}: {self.annotations} has {"several images" if ids else "no image"} of this name, which is '
                'left out of the COCO results'
            )
        return ids[0]


def detections_of(sample: DetDataSample) -> Detections:
    """Of mmdet's result of one image.

    Raises:
        ValueError: it has no boxes, as of a panoptic segmentation.
    """
    if 'pred_instances' not in sample:
        raise ValueError(f'the detector gives {", ".join(sample.keys())} of an image, and no boxes')
    found = sample.pred_instances.cpu()
    masks = found.get('masks')
    boxes, scores = (x.float().numpy() for x in (found.bboxes, found.scores))
    return Detections(boxes, scores, found.labels.numpy(), None if masks is None else np.asarray(masks, bool))


def to_supervision(found: Detections, classes: Sequence[str]):
    """``supervision.Detections`` (``pip install supervision``), with ``data['class_name']``."""
    import supervision

    return supervision.Detections(
        xyxy=np.asarray(found.boxes, np.float32).reshape(-1, 4),
        confidence=np.asarray(found.scores, np.float32),
        class_id=np.asarray(found.labels, int),
        mask=found.masks if len(found.boxes) else None,
        data=dict(class_name=np.array([classes[label] for label in found.labels], dtype=str)),
    )


def to_pandas(found: Detections, classes: Sequence[str], path: str | None = None, frame: int | None = None):
    """A ``pandas.DataFrame`` (``pip install pandas``), a row a detection: path, frame, label, name, score, x1 to y2."""
    import pandas

    boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4)
    return pandas.DataFrame(
        dict(
            path=[path] * len(boxes),
            frame=pandas.array([frame] * len(boxes), dtype='Int64'),
            label=np.asarray(found.labels, int),
            name=[classes[label] for label in found.labels],
            score=np.asarray(found.scores, np.float64),
            **{name: boxes[:, i] for i, name in enumerate(('x1', 'y1', 'x2', 'y2'))},
        )
    )


def _run_lengths(mask: np.ndarray) -> dict:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())


def _few(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
