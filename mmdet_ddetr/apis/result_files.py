"""Detections of many pictures in one file."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from ..export.runtime import Detections
from ..files import GrowingFile
from .inputs import Picture


class CsvFile:
    """``results.csv``: path, frame, width, height, label, score, x1, y1, x2, y2; a line for each detection.

    Boxes are in px of the picture; ``frame`` is empty where the picture is none of a video.

    Args:
        folder: that the file is written to.
        classes: a name for each label.
    """

    NAME = 'results.csv'
    COLUMNS = ('path', 'frame', 'width', 'height', 'label', 'score', 'x1', 'y1', 'x2', 'y2')
    STARTS = (','.join(COLUMNS).encode(),)  # one of them begins each file that was written here

    def __init__(self, folder: Path, classes: Sequence[str]):
        self.classes = classes
        options = dict(newline='', encoding='utf-8', errors='surrogateescape')  # a file's name may hold any bytes
        self._file = GrowingFile(folder / self.NAME, **options)
        self._writer = csv.writer(self._file, lineterminator='\n')

    def add(self, picture: Picture, shape: tuple[int, int], found: Detections) -> None:
        if not self._file.begun:
            self._writer.writerow(self.COLUMNS)
        height, width = shape
        frame = '' if picture.number is None else picture.number
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()):
            corners = (round(x, 2) for x in box)
            row = (picture.origin, frame, width, height, self.classes[label], round(score, 4), *corners)
            self._writer.writerow(row)

    def close(self, whole: bool = True) -> Path | None:
        """Give the file its name, if there was a picture; see :meth:`GrowingFile.close`."""
        return self._file.close(whole)


class CocoFile:
    """``predictions.json``: a data set in COCO format, which labelling tools import; its boxes have a ``score``.

    Categories are numbered from 1 in the order of the classes. A frame of a video is an image of the video's path.

    Args: as :class:`CsvFile`.
    """

    NAME = 'predictions.json'
    STARTS = (b'{"images": [{"id": 1, "file_name": ',)

    def __init__(self, folder: Path, classes: Sequence[str]):
        self._file = GrowingFile(folder / self.NAME, encoding='utf-8')
        categories = [dict(id=label, name=name) for label, name in enumerate(classes, 1)]
        self._content = dict(images=[], annotations=[], categories=categories)

    def add(self, picture: Picture, shape: tuple[int, int], found: Detections) -> None:
        images, annotations = self._content['images'], self._content['annotations']
        image = dict(id=len(images) + 1, file_name=picture.origin, width=shape[1], height=shape[0])
        if picture.number is not None:
            image['frame'] = picture.number
        images.append(image)
        for (x1, y1, x2, y2), score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()):
            box = [round(x, 2) for x in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image['id'],
                    category_id=label + 1,
                    bbox=box,
                    area=round(box[2] * box[3], 2),
                    iscrowd=0,
                    score=round(score, 4),
                )
            )

    def close(self, whole: bool = True) -> Path | None:
        """As :class:`CsvFile`."""
        if self._content['images']:
            self._file.write(json.dumps(self._content))
        return self._file.close(whole)


FILES = {'csv': CsvFile, 'coco': CocoFile}
