"""What the readers of all formats hand over, and how it becomes COCO's entries."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..coco_folder import CocoSplit, Fault, write_coco
from ..image_file import ImageFacts, inspect_images
from ..records import LABELLED_IN
from .tree import Tree
from .unread import beside

DECIMALS = 4  # of a pixel


@dataclass(slots=True)
class Box:
    """One labelled object.

    Attributes:
        label: number or name of its class.
        corners: x1, y1, x2, y2, in px, or in shares of the image's sides where the picture is ``scaled``.
        place: file and line.
        ignored: neither trained nor evaluated.
    """

    label: int | str
    corners: tuple[float, float, float, float]
    place: str
    ignored: bool = False


@dataclass(slots=True)
class Picture:
    """An image and its boxes.

    Attributes:
        place: of its labels, in words.
        size: width and height as the labels say; None: they do not.
        scaled: its boxes are in shares of its sides.
    """

    path: Path
    place: str
    boxes: list[Box] = field(default_factory=list)
    size: tuple[int, int] | None = None
    scaled: bool = False


@dataclass
class Labels:
    """A data set, as its reader found it.

    Attributes:
        tree: its files.
        format: 'YOLO', 'Pascal VOC' or 'CSV'.
        classes: name of each class by its number; of formats that label with names: filled by ``number_classes``.
        splits: pictures of 'train', 'val' and 'test'; '' is those of no split.
        notes: sentences about how it was read.
    """

    tree: Tree
    format: str
    classes: dict[int, str] = field(default_factory=dict)
    splits: dict[str, list[Picture]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))

    def fault(self, split: str, level: str, rule: str, place: str, remedy: str = '') -> None:
        """Note a fault, as ``Report.add`` does."""
        self.faults[split].append((level, rule, place, remedy))

    def leave_out_unlabelled(self, rule: str, labelled: Iterable[Path] = ()) -> None:
        """Tell of pictures that have no labels, in the folders of those that do: nobody knows what is on them.

        Args:
            rule: of the fault.
            labelled: other files whose pictures are left out for a reason of their own.
        """
        used = {picture.path for pictures in self.splits.values() for picture in pictures}
        folders, keys = {path.parent for path in used}, {self.tree.key(path) for path in labelled}
        left = [
            path
            for path in self.tree.pictures
            if path.parent in folders and path not in used and self.tree.key(path) not in keys
        ]
        unread = beside(self.tree, left)
        for path in left:
            split = self.tree.split_of(path)
            split = split if split in self.splits else next(iter(self.splits))
            if path in unread:
                self.leave_out_unread(split, path, unread[path])
            else:
                self.fault(split, 'warning', rule, self.tree.relative(path), 'left out')

    def leave_out_unread(self, split: str, path: Path, labels: str) -> None:
        """Tell of a picture that has labels only in a format that is not read."""
        remedy = f'left out; convert the labels to {self.format}'
        place = f'{self.tree.relative(path)}: {labels}'
        self.fault(split, 'warning', 'image whose labels are in a format that is not read', place, remedy)

    def settle(self) -> None:
        """Make pictures of no split the train split, if there is no other.

        What is wrong with a split of which no picture is left is told of train.
        """
        loose = self.splits.pop('', [])
        self.splits = {name: pictures for name, pictures in self.splits.items() if pictures}
        if 'train' not in self.splits:
            self.splits = {'train': loose, **self.splits}
        elif loose:
            places = ', '.join(self.tree.relative(picture.path) for picture in loose[:3])
            self.notes.append(f'{len(loose)} pictures are in no split and left out: {places}{", ..."[: len(loose)]}')
        for name in self.faults.keys() - self.splits.keys():
            self.faults['train'] += self.faults.pop(name)


def number_classes(labels: Labels) -> None:
    """Number classes that are known by name alone, in the order of the alphabet.

    Names that differ in capitals or spaces only are one class, under the spelling that most boxes have. Single letters
    are what they are: characters to be read.
    """
    counts, first = Counter(), {}
    for pictures in labels.splits.values():
        for picture in pictures:
            for box in picture.boxes:
                counts[box.label] += 1
                first.setdefault(box.label, box.place)
    spellings = defaultdict(list)
    for name, _ in counts.most_common():
        spellings[name if len(name) == 1 else ' '.join(name.casefold().split())].append(name)
    meant = {name: names[0] for names in spellings.values() for name in names}
    for names in spellings.values():
        for other in names[1:]:
            labels.fault(
                'train', 'warning', 'class names that differ only in capitals or spaces',
                f'{other!r}, {counts[other]} x, first in {first[other]}; {names[0]!r}, {counts[names[0]]} x',
                'taken as one class, in the spelling that is more frequent',
            )  # fmt: skip
    labels.classes = dict(enumerate(sorted(set(meant.values()))))
    number = {name: i for i, name in labels.classes.items()}
    for pictures in labels.splits.values():
        for picture in pictures:
            for box in picture.boxes:
                box.label = number[meant[box.label]]


def write_splits(labels: Labels, out_dir: Path, decode: bool = False) -> dict[str, CocoSplit]:
    """Write ``<out_dir>/<split>.json`` in COCO format.

    Args:
        labels: with numbered classes.
        out_dir: made if missing; nothing is written beside the data.
        decode: decode every image, see ``check_coco``.
    """
    paths = list(dict.fromkeys(picture.path for pictures in labels.splits.values() for picture in pictures))
    facts = {path: found for path, found in zip(paths, inspect_images(paths, decode)) if not isinstance(found, str)}
    splits = {}
    for name, pictures in labels.splits.items():
        ann_file = out_dir / f'{name}.json'
        write_coco(ann_file, _coco_of(labels, pictures, facts))
        names = {labels.tree.relative(path): found for path, found in facts.items()}
        title = f'{labels.tree.root} ({labels.format}), {name}'
        splits[name] = CocoSplit(name, ann_file, labels.tree.root, title, tuple(labels.faults[name]), names)
    return splits


def _coco_of(labels: Labels, pictures: Iterable[Picture], facts: dict[Path, ImageFacts]) -> dict:
    images, annotations = [], []
    for id, picture in enumerate(pictures, start=1):
        found = facts.get(picture.path)
        width, height = picture.size or (found and (found.width, found.height)) or (None, None)
        image = {'id': id, 'file_name': labels.tree.relative(picture.path), LABELLED_IN: picture.place}
        images.append(image if width is None else {**image, 'width': width, 'height': height})
        scale = (found.width, found.height) * 2 if picture.scaled and found else (1,) * 4
        for box in picture.boxes:
            x1, y1, x2, y2 = (round(value * factor, DECIMALS) for value, factor in zip(box.corners, scale))
            annotation = {
                'id': len(annotations) + 1,
                'image_id': id,
                'category_id': box.label,
                'bbox': [x1, y1, round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)],
                'area': (x2 - x1) * (y2 - y1),
                'iscrowd': int(box.ignored),
                LABELLED_IN: box.place,
            }
            annotations.append(annotation)
    categories = [dict(id=id, name=name) for id, name in sorted(labels.classes.items())]
    return dict(images=images, annotations=annotations, categories=categories)


def finite(text: str | None) -> float | None:
    """A number in a file, or None."""
    try:
        value = float(text.strip()) if text and '_' not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
