"""YOLO: a text file of boxes beside each picture or in labels/ beside images/, and data.yaml with splits and names.

The layouts of Ultralytics, Roboflow, Label Studio, labelImg, CVAT and darknet.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..coco_folder import SPLIT_NAMES
from ..errors import DataError
from ..files import natural, read_annotations
from ..image_file import SUFFIXES
from ..report import MAX_SHOWN, printable
from .labels import Box, Labels, Picture, finite
from .tree import ALIASES, Tree
from .unread import beside

ROUNDING = 0.01  # a share that leaves [0, 1] by so much is one that was rounded, as Ultralytics takes it
NAME_FILES = ('classes.txt', 'obj.names', 'labels.txt', 'names.txt', '_darknet.labels')
MAX_CLASSES = 10_000
LINE = re.compile(rb'\s*\d+(\.0*)?([\s,]+[-+.\deE]+){4,}\s*')


def find_yolo(tree: Tree) -> Labels | None:
    """The data set below a folder, if it is one of YOLO's."""
    labels = Labels(tree, 'YOLO')
    config = _find_config(tree)
    pictures, has_keypoints = {}, False
    if config:
        path, content = config
        source, labels.classes = tree.relative(path), _names_of(path, content)
        if content.get('nc') not in (None, len(labels.classes)):
            place = f'{source}{_line_of(path, "nc")}: nc is {content["nc"]!r}, names has {len(labels.classes)}'
            labels.fault('', 'warning', 'nc that is not the number of names', place, 'the names are used')
        pictures, has_keypoints = dict(_pictures_of_config(labels, path, content)), 'kpt_shape' in content
    if not any(pictures.values()):
        if not any(LINE.match(_first_line(path)) for path in tree.of('.txt') if path.name not in NAME_FILES):
            return None
        if not config:
            source, labels.classes = _names_beside(tree)
        pictures = _pictures_of_lists(tree) or {}
    reader = _Reader(labels, source, has_keypoints)
    if not pictures:
        folders = {
            path.parent for path in tree.pictures if reader.file_of(path)
        }  # others hold pictures of another kind
        for path in tree.pictures:
            if path.parent in folders:
                pictures.setdefault(tree.split_of(path), []).append(path)
    reader.read(pictures)
    return labels


# ------------------------------------------------------------------------------------------------- names and splits
def _find_config(tree: Tree) -> tuple[Path, dict] | None:
    """The first YAML file with ``names`` and a split; data.yaml before others."""
    files = [path for path in tree.of('.yaml', '.yml') if path.parent == tree.root]
    for path in sorted(files, key=lambda path: path.stem != 'data'):
        text = _text(path)
        try:
            content = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = f', line {error.problem_mark.line + 1}' if error.problem_mark else ''
            raise DataError(f'{path}{line}: not YAML: {printable(error.problem)}') from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DataError(f'{path}: not YAML: {printable(error, MAX_SHOWN)}') from None
        if isinstance(content, dict) and ('names' in content or 'nc' in content):
            return path, content
    return None


def _names_of(path: Path, content: dict) -> dict[int, str]:
    names = content.get('names')
    if isinstance(names, list):
        names = dict(enumerate(names))
    if names is None and type(content.get('nc')) is int and 0 < content['nc'] <= MAX_CLASSES:
        names = {number: f'class {number}' for number in range(content['nc'])}
    numbers = isinstance(names, dict) and all(type(number) is int and number >= 0 for number in names)
    if not names or not numbers or not all(isinstance(name, str | int | float) for name in names.values()):
        raise DataError(
            f'{path}{_line_of(path, "names")}: names is {printable(names, MAX_SHOWN)}, expected a list of names, or a '
            'dict with a name for each number'
        )
    return {number: str(name) for number, name in names.items()}


def _names_beside(tree: Tree) -> tuple[str, dict[int, str]]:
    """Of a data set without data.yaml: one name a line."""
    files = [path for path in tree.files if path.name.lower() in NAME_FILES or path.suffix == '.names']
    for path in sorted(files, key=lambda path: len(path.parts)):
        names = [line.strip() for line in _text(path).rstrip().splitlines()]
        if '' in names:
            number = names.index('')
            raise DataError(
                f'{path}, line {number + 1}: blank, expected the name of class {number}: each line names a class'
            )
        if names:
            return tree.relative(path), dict(enumerate(names))
    return '', {}


def _pictures_of_config(labels: Labels, config: Path, content: dict) -> Iterator[tuple[str, list[Path]]]:
    for split, aliases in SPLIT_NAMES.items():
        key = next((alias for alias in aliases if content.get(alias)), None)
        if key is None:
            continue
        values = content[key] if isinstance(content[key], list) else [content[key]]
        found = []
        for value in values:
            at = f'{labels.tree.relative(config)}{_line_of(config, key)}'
            place = _locate(labels.tree, config, content.get('path'), value) if isinstance(value, str) else None
            if place is None:
                if split == 'train':
                    raise DataError(f'{config}{_line_of(config, key)}: {key} is {value!r}, which is not there')
                labels.fault(
                    'train', 'warning', 'split of data.yaml that is not there', f'{at}: {key} is {value!r}', 'left out'
                )
            elif place.is_dir():
                inside = labels.tree if place == labels.tree.root else Tree(place)
                found += inside.pictures
            elif place.suffix.lower() in SUFFIXES:
                found.append(place)
            else:
                found += _listed(labels.tree, place, [config.parent])
        yield split, found


def _locate(tree: Tree, config: Path, base, value: str) -> Path | None:
    """A path of data.yaml: as it is meant, else as far as it leads below the folder of data.yaml.

    Roboflow's begin with a .. too many, and absolute ones are of the machine that wrote them.
    """
    bases = [config.parent / base, config.parent] if isinstance(base, str) else [config.parent]
    parts = [part for part in Path(value).parts if part not in ('/', '..', '.')]
    tails = [parts[start:] for start in range(len(parts))]
    split = [part for part in parts if part.lower() in ALIASES]  # a tail without it is the folder of all splits
    tails = [tail for tail in tails if not split or split[-1] in tail]
    try:
        for path in (*(base / value for base in bases), *(config.parent.joinpath(*tail) for tail in tails)):
            if path.exists():
                return tree.spelled(path)
    except (OSError, ValueError):  # a name that no file can have
        pass
    return None


def _pictures_of_lists(tree: Tree) -> dict[str, list[Path]]:
    """darknet's and CVAT's train.txt: a picture a line."""
    pictures = {}
    for path in tree.of('.txt'):
        split = ALIASES.get(path.stem.lower())
        if split and split not in pictures and path.parent in (tree.root, tree.root / 'data'):
            found = _listed(tree, path, [tree.root])
            if any(path.suffix.lower() in SUFFIXES for path in found):
                pictures[split] = found
    return pictures


def _listed(tree: Tree, path: Path, bases: list[Path]) -> list[Path]:
    """Pictures that a text file names: relative to it or to a base, or their end is."""
    found = []
    for line in _text(path).splitlines():
        if line := line.strip():
            parts = [part for part in Path(line).parts if part not in ('/', '..')]
            tails = [Path(*parts[start:]) for start in range(len(parts))]
            options = [folder / tail for tail in (Path(line), *tails) for folder in (path.parent, *bases)]
            found.append(tree.spelled(next((option for option in options if option.is_file()), path.parent / line)))
    return found


# ------------------------------------------------------------------------------------------------------------ labels
@dataclass(slots=True)
class _Line:
    """A class and its numbers: of a box, or of a polygon's corners."""

    split: str
    place: str
    label: int
    numbers: list[float]

    @property
    def outside(self) -> float | None:
        """The first number that is no share."""
        return next((value for value in self.numbers if not -ROUNDING <= value <= 1 + ROUNDING), None)


class _Reader:
    """Reads the label file of each picture."""

    def __init__(self, labels: Labels, source: str, has_keypoints: bool):
        self.labels, self.tree, self.source = labels, labels.tree, source
        self.has_keypoints = has_keypoints
        self.named = bool(labels.classes)
        self.by_key = self.tree.by_key(path for path in self.tree.of('.txt') if path.name not in NAME_FILES)
        self.used: set[Path] = set()
        self.lines: list[_Line] = []

    def read(self, pictures: dict[str, list[Path]]) -> None:
        for split, paths in pictures.items():
            files = {path: self.file_of(path) for path in sorted(dict.fromkeys(paths), key=natural)}
            unread = beside(self.tree, [path for path, file in files.items() if file is None])
            for path, file in files.items():
                if path in unread:
                    self.labels.leave_out_unread(split, path, unread[path])
                else:
                    self.labels.splits[split].append(self._picture(split, path, file))
        self._tell_of_classes()
        self._tell_of_polygons()
        self._tell_of_outside()
        self._look_for_others()
        if not self.named:
            numbers = {box.label for found in self.labels.splits.values() for p in found for box in p.boxes}
            self.labels.classes = {number: f'class {number}' for number in sorted(numbers)}
            rule = 'classes without names: no data.yaml, no classes.txt'
            remedy = 'write a classes.txt with one name a line beside the pictures'
            self.labels.fault('', 'warning', rule, str(sorted(numbers)), remedy)

    def _picture(self, split: str, path: Path, file: Path | None) -> Picture:
        if file is None:
            place = self.tree.relative(path)
            remedy = 'taken as an image without objects'
            self.labels.fault(split, 'warning', 'image without a label file', place, remedy)
            return Picture(path, place, scaled=True)
        self.used.add(file)
        name = self.tree.relative(file)
        if file.stem != path.stem:
            place = f'{name}, for {self.tree.relative(path)}'
            self.labels.fault(split, 'warning', 'label file and image that differ in capitals', place, 'used')
        picture = Picture(path, name, scaled=True)
        for number, line in enumerate(_text(file).splitlines(), start=1):
            if line.strip():
                place = f'{name}, line {number}'
                box = self._box(split, line, place)
                if box:
                    picture.boxes.append(box)
        return picture

    def file_of(self, picture: Path) -> Path | None:
        """In labels/ for images/, the last of its path, or beside the picture; else whatever has its name."""
        parts = list(picture.parts)
        options = [picture.with_suffix('.txt')]
        if 'images' in parts[:-1]:
            last = len(parts) - 2 - parts[-2::-1].index('images')
            options.insert(0, Path(*parts[:last], 'labels', *parts[last + 1 :]).with_suffix('.txt'))
        for path in (*options, *self.by_key.get(self.tree.key(picture), ())):
            if path.is_file():
                return path
        return None

    def _box(self, split: str, line: str, place: str) -> Box | None:
        words = line.replace(',', ' ').split()
        values = [finite(word) for word in words]
        count = len(values) - 1
        if count >= 4 and values[0] is None and None not in values[1:]:
            rule = 'class that is no number, as lines of YOLO begin with; names are in data.yaml or classes.txt'
            return self.labels.fault(split, 'error', rule, f'{place}: class must be a number, found {words[0][:80]!r}')
        if None in values or count < 4:
            rule = 'line that is not a class and four numbers, or a class and a polygon'
            return self.labels.fault(split, 'error', rule, f'{place}: {line.strip()[:80]!r}')
        label, *numbers = values
        if label != int(label) or label < 0:
            return self.labels.fault(split, 'error', 'class that is no whole number', f'{place}: class {words[0]}')
        if self.has_keypoints or count in (4, 5):  # 5: a confidence follows
            if count > 4:
                more = 'keypoints' if self.has_keypoints else 'number'
                self.labels.fault(split, 'note', f'{more} behind the box', place, 'not used')
            x, y, w, h = numbers = numbers[:4]
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        elif count % 2:
            rule = 'polygon of an odd number of coordinates'
            return self.labels.fault(split, 'error', rule, f'{place}: {count} numbers behind the class')
        else:
            corners = (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
        found = _Line(split, place, int(label), numbers)
        self.lines.append(found)
        return Box(int(label), corners, place) if self._has_name(found) and found.outside is None else None

    def _has_name(self, line: _Line) -> bool:
        return not self.named or line.label in self.labels.classes

    def _tell_of_classes(self) -> None:
        """Classes without a name, and whether they look as if they were counted from 1."""
        known, used = self.labels.classes, {line.label for line in self.lines}
        from_one = used and 0 in known and 0 not in used and max(used) == max(known) + 1
        cause = f'no box has class 0 and some have class {max(used)}: do the classes begin at 1?' if from_one else ''
        for line in self.lines:
            if not self._has_name(line):
                place = f'{line.place}: class {line.label}, but {self.source} names {min(known)} to {max(known)}'
                self.labels.fault(line.split, 'error', 'class that has no name', place, cause)

    def _tell_of_polygons(self) -> None:
        """Four corners everywhere are how oriented boxes are written."""
        polygons = [line for line in self.lines if len(line.numbers) > 4]
        oriented = bool(polygons) and all(len(line.numbers) == 8 for line in self.lines)
        rule = 'oriented box, or polygon of four corners' if oriented else 'polygon'
        remedy = f'the {"upright " * oriented}box around it is used'
        for line in polygons:
            self.labels.fault(line.split, 'note', rule, line.place, remedy)

    def _tell_of_outside(self) -> None:
        outside = [line for line in self.lines if line.outside is not None]
        largest = [max(line.numbers) for line in self.lines]
        if outside and max(largest) > 2 and all(number > 1 + ROUNDING for number in largest):  # else a wrong digit
            raise DataError(
                f'{self.tree.root}, YOLO: every box has a number above 1, such as {max(outside[0].numbers):g} in '
                f'{outside[0].place}. These look like pixels, but YOLO wants shares of the image: divide x and width '
                'by the width of the image, y and height by its height'
            )
        for line in outside:
            rule = "coordinate outside of [0, 1]: YOLO's are shares of the image's width and height"
            self.labels.fault(line.split, 'error', rule, f'{line.place}: {line.outside:g}')

    def _look_for_others(self) -> None:
        """Label files that no picture belongs to, in the folders of those that one does."""
        folders = {path.parent for path in self.used}
        for path in self.tree.of('.txt'):
            if path.parent in folders and path not in self.used and LINE.match(_first_line(path)):
                split = self.tree.split_of(path)
                place = f'{self.tree.relative(path)}, line 1'
                self.labels.fault(split, 'error', 'label file without an image', place, 'left out by --drop-bad')


def _text(path: Path) -> str:
    try:
        return read_annotations(path).decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is not text in UTF-8 ({error}): save it as UTF-8') from None


def _first_line(path: Path) -> bytes:
    try:
        with open(path, 'rb') as file:
            return file.readline(1000)
    except OSError:
        return b''


def _line_of(path: Path, key: str) -> str:
    """', line 3': where a file of YAML has a key."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if re.match(rf'\s*["\']?{key}["\']?\s*:', line):
            return f', line {number}'
    return ''
