"""Detect in files, folders, videos and cameras with a detector of any form, and write what is found."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from ..datasets.errors import DataError
from ..datasets.report import printable
from ..export.description import ExportError
from ..export.runtime import Detections, ExportedDetector
from ..files import make_folder, named, unfinished_name, write_atomically
from .console import progress
from .inferencer import DDetrInferencer
from .inputs import Picture, number_of, pictures
from .outputs import ClipFiles, Names, finishing, sources_of
from .pictures import draw_boxes, palette, write_picture
from .result_files import FILES
from .results import CocoResults


class Detector(Protocol):
    """What detects: an exported file, a checkpoint, either of them in tiles.

    Attributes:
        classes: a name for each label.
        threshold: score below which detections are usually left out.
        batch_size: the number of images it takes; None: any.
    """

    classes: Sequence[str]
    threshold: float
    batch_size: int | None

    def __call__(self, images: Sequence[np.ndarray], threshold: float) -> list[Detections]: ...


class CheckpointDetector:
    """A checkpoint as a :class:`Detector`.

    Args: those of :class:`DDetrInferencer`.
    """

    threshold, batch_size = 0.3, None

    def __init__(self, model, weights, device=None, optimize=None):
        self.inferencer = DDetrInferencer(model, weights, device=device, optimize=optimize, show_progress=False)
        self.classes = self.inferencer.classes

    def __call__(self, images: Sequence[np.ndarray], threshold: float = 0.0) -> list[Detections]:
        return self.inferencer.detect(images, threshold)


def open_detector(
    path: str,
    config: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    optimize: str | None = None,
):
    """An exported file by its ending, or else a checkpoint.

    Args:
        path: of a file of ``tools/export.py``, or weights of any layout in docs/checkpoints.md.
        config: of a checkpoint; None: the one inside it.
        device, threads: to compute with: of a checkpoint the first, of an exported file the second.
        optimize: of a checkpoint, as of :class:`DDetrInferencer`.

    Raises:
        ExportError, FileNotFoundError, ImportError, ValueError: it cannot be opened; the sentence says why.
    """
    exported = ExportedDetector.reads(path)
    unread = dict(config=config, device=device, optimize=optimize) if exported else dict(threads=threads)
    for name, value in unread.items():
        if value is not None:
            kinds = ('a checkpoint', 'an exported file') if exported else ('an exported file', 'a checkpoint')
            raise ValueError(f'{name}={value!r} is for {kinds[0]}; {path} is {kinds[1]}')
    if exported:
        return ExportedDetector(path, threads)
    return CheckpointDetector(config, path, device, optimize)


class Files:
    """What is written about pictures and videos, in one folder.

    Of a picture ``<name>.jpg`` and ``<name>.json`` with {image, width, height, objects: [{label, score, box}]}, box as
    [x1, y1, x2, y2] in px; of a video ``<name>.mp4`` and ``<name>.jsonl``, a line {frame, time, width, height, objects}
    for each frame. Other formats are one file for all, see ``result_files.py``.

    Args:
        folder: made if missing; an OSError says why nothing can be written there.
        classes: a name for each label.
        inputs: what is looked at.
        every: n of each n-th frame that is looked at, for the speed of annotated videos.
        coco: annotation file with the ids of images and categories, for ``results.bbox.json`` in COCO's format of
            results; None: no such file.
        draw: write pictures and videos, too.
        formats: some of 'json', 'csv' (``results.csv``) and 'coco' (``predictions.json``).

    Raises:
        FileExistsError: one of the inputs, labels beside them or ``coco`` would be replaced; nothing is written.

    Attributes:
        number: of the pictures and frames that were written about.
    """

    def __init__(
        self,
        folder: str | Path,
        classes: Sequence[str],
        inputs: Sequence[str | int] = (),
        every=1,
        coco=None,
        draw=True,
        formats: Sequence[str] = ('json',),
    ):
        self.folder, self.classes, self.every, self.draw = Path(folder), classes, every, draw
        self._names, self._colours, self._clips = Names(), palette(len(classes)), ClipFiles()
        self.number = 0
        make_folder(self.folder)
        self._json = 'json' in formats
        tables = [FILES[name] for name in dict.fromkeys(formats) if name != 'json']
        for_all = [*tables] + [CocoResults] * bool(coco)
        for path in (Path(table.NAME) for table in for_all):
            if path.suffix == '.json':  # as of what is written about a picture
                self._names.reserve(path.stem, self.folder)
                self._names.reserve(unfinished_name(path).stem, self.folder)
        self._sources = sources_of(inputs, self._names, self.folder, self._suffixes, for_all=for_all)
        if coco:
            self._sources.add(coco)
        for table in for_all:
            self._sources.check(self.folder / table.NAME)
        self._coco = coco and CocoResults(self.folder / CocoResults.NAME, coco, classes)
        self._tables = [table(self.folder, classes) for table in tables]

    def _suffixes(self, path: str, is_video: bool) -> list[str]:
        """Of what is written about a file."""
        drawn, noted = ('.mp4', '.jsonl') if is_video else ('.jpg', '.json')
        return [drawn] * self.draw + [noted] * self._json

    def write(self, picture: Picture, image: np.ndarray, found: Detections) -> list[str]:
        """Write about one picture; returns the names of its objects.

        Raises:
            DataError: the annotation file has no such image; everything else is written.
            FileExistsError: the annotated picture or video would replace one of the inputs.
            OSError: it cannot be written; names the file or the folder.
        """
        self.number += 1
        with named(self.folder):
            return self._write(picture, image, found)

    def _write(self, picture, image, found):
        boxes, scores, labels = (x.tolist() for x in (found.boxes, found.scores, found.labels))
        objects = [
            dict(label=self.classes[label], score=round(score, 4), box=[round(x, 2) for x in box])
            for box, score, label in zip(boxes, scores, labels)
        ]
        size = dict(width=image.shape[1], height=image.shape[0])
        name = self.folder / self._names.of(picture.origin, self.folder)
        drawn_path = f'{name}{".mp4" if picture.clip else ".jpg"}'
        if self.draw:
            self._sources.check(drawn_path)
            drawn = draw_boxes(image, boxes, labels, self.classes, self._colours, scores)
        for table in self._tables:
            table.add(picture, image.shape[:2], found)
        if picture.clip:
            if self._json:
                record = dict(frame=picture.number, time=round(picture.time, 4), **size, objects=objects)
                self._clips.note(f'{name}.jsonl', picture.clip, record)
            if self.draw:
                self._clips.draw(drawn_path, picture.clip, drawn, picture.clip.fps / self.every)
        else:
            if self._json:
                record = dict(image=picture.path, **size, objects=objects)
                write_atomically(f'{name}.json', json.dumps(record, indent=1).encode(), sync=False)
            if self.draw:
                write_picture(drawn_path, drawn)
            if self._coco:
                self._coco.add(picture.path, found)
        return [item['label'] for item in objects]

    def close(self, whole: bool = True) -> None:
        """Finish the files: a video can be opened, and the results of all pictures read, after this only.

        Args:
            whole: the results of all pictures take the place of earlier ones; else they get names of their own, which
                are told on stderr.
        """
        written = []
        try:
            with named(self.folder), ExitStack() as stack:
                for table in (*filter(None, [self._coco]), *reversed(self._tables)):
                    stack.callback(lambda table=table: written.append(table.close(whole)))
                self._clips.close()
        finally:
            names = [path.name for path in written if path]
            if names and not whole:
                print(f'what was found before the error is in {self.folder}: {" and ".join(names)}', file=sys.stderr)


def detect_files(
    detector: Detector,
    inputs: Sequence[str | int],
    files: Files,
    *,
    threshold: float | None = None,
    batch_size: int = 1,
    most: int | None = None,
    shown: bool = True,
    tell: Callable[[str], None] = print,
) -> int:
    """Detect in all inputs; what cannot be read is named on stderr and left out.

    Args:
        threshold: score below which detections are left out; None: the detector's.
        batch_size: images at once; a detector that takes a fixed number of them gets that.
        most: pictures and frames, after which to stop; None: all.
        shown: a progress bar on stderr.
        tell: told a line for each picture, and for each video at its end.

    Returns:
        The number of failures.
    """
    threshold = detector.threshold if threshold is None else threshold
    failures, lines = 0, Lines(tell)

    def fail(error: Exception) -> None:
        nonlocal failures
        failures += 1
        print(error, file=sys.stderr)

    total = number_of(inputs, files.every)
    stream = islice(pictures(inputs, files.every), most)
    if most is not None:
        total = min(most, total or most)
    with finishing(files.close):
        with progress('Detecting', total, shown, stderr=True) as advance:
            while batch := list(islice(stream, detector.batch_size or batch_size)):
                for picture, image, found in _found(detector, batch, threshold, fail):
                    try:
                        labels = files.write(picture, image, found)
                    except DataError as error:
                        fail(error)
                        continue
                    lines.add(picture, labels)
                advance(len(batch))
        lines.close()
    return failures


class Lines:
    """A line for each picture, and for each video once all of it is known."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell, self._clip, self._frames, self._labels = tell, None, 0, Counter()

    def add(self, picture: Picture, labels: Sequence[str]) -> None:
        """One more, with the names of its objects."""
        if picture.clip is not self._clip:
            self.close()
        if picture.clip is None:
            self._tell(f'{picture.path}: {_counts(Counter(labels))}')
        else:
            self._clip, self._frames = picture.clip, self._frames + 1
            self._labels.update(labels)

    def close(self) -> None:
        """The line of the video, if the last picture was of one."""
        if self._clip is not None:
            self._tell(f'{self._clip.name}: in {self._frames} frames {_counts(self._labels)}')
        self._clip, self._frames, self._labels = None, 0, Counter()


def _counts(labels: Counter) -> str:
    return ', '.join(f'{number} {printable(label)}' for label, number in labels.most_common()) or 'nothing'


def _found(detector, batch, threshold, fail) -> Iterator[tuple[Picture, np.ndarray, Detections]]:
    """What is found in the pictures of a batch that can be read; where a batch fails, in each alone."""
    images = []
    for picture in batch:
        try:
            images.append((picture, picture.read()))
        except (OSError, ValueError) as error:
            fail(error)
    try:
        yield from ((*item, found) for item, found in zip(images, _detect(detector, images, threshold)))
    except ExportError as error:
        if len(images) == 1:
            fail(ExportError(images[0][0].named(error)))
            return
        for item in images:
            yield from _found(detector, [item[0]], threshold, fail)


def _detect(detector, images, threshold) -> list[Detections]:
    if not images:
        return []
    pixels = [image for _, image in images]
    pixels += pixels[-1:] * ((detector.batch_size or 0) - len(pixels))  # the last batch may be smaller
    return detector(pixels, threshold)
