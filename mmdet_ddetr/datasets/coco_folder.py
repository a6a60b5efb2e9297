"""Find the annotation files and images of a data set in COCO format, whichever of the usual layouts it has."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from .errors import DataError
from .file_names import misspelt_names
from .files import read_annotations
from .image_file import ImageFacts

SPLIT_NAMES = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}
ANNOTATION_FILES = (
    'annotations/{split}.json',
    'annotations/instances_{split}.json',
    'annotations/instances_{split}2017.json',  # COCO
    '{split}/_annotations.coco.json',  # Roboflow
    '{split}.json',
)
LISTS = ('images', 'annotations', 'categories')  # of a COCO file
IMAGE_DIRS = ('images/{split}', '{split}2017', '{split}', 'images/{split}2017', '{split}/images', 'images', '.')


Fault = tuple[str, str, str, str]  # level, rule, place, remedy: see Report.add


@dataclass(frozen=True)
class CocoSplit:
    """One annotation file and the folder that its file names are relative to.

    Attributes:
        title: what a report calls it; '': the file's path.
        faults: what was found while the file was made from another format.
        facts: of images, by their file name, that were read for it.
    """

    name: str  # train, val or test
    ann_file: Path
    image_dir: Path
    title: str = field(default='', compare=False)
    faults: tuple[Fault, ...] = field(default=(), compare=False, repr=False)
    facts: dict[str, ImageFacts] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class CocoFolder:
    """A data set in COCO format, as it is on the disk or as it was converted.

    Attributes:
        test: val's files where there is no test split.
        format: of the user's own files.
        notes: sentences about how it was read.
    """

    root: Path
    train: CocoSplit
    val: CocoSplit
    test: CocoSplit
    format: str = 'COCO'
    notes: tuple[str, ...] = ()

    @property
    def has_test(self) -> bool:
        return self.test.ann_file != self.val.ann_file

    @property
    def splits(self) -> list[CocoSplit]:
        """The different ones."""
        return [self.train, self.val, self.test] if self.has_test else [self.train, self.val]


def find_coco_folder(root: str | Path) -> CocoFolder:
    """Recognise the layout of a COCO-format folder.

    Annotations are looked for in ``annotations/{split}.json``, ``annotations/instances_{split}.json``,
    ``annotations/instances_{split}2017.json``, ``{split}/_annotations.coco.json`` (Roboflow) and ``{split}.json``,
    where split is train, val (or valid, validation) or test. Images are taken from that one of ``images/{split}/``,
    ``{split}2017/``, ``{split}/``, ``images/{split}2017/``, ``{split}/images/``, ``images/`` and the root which holds
    most of the first files named in the annotations. Names of files and folders are compared without regard to case.
    Without a test split val takes its place.

    Raises:
        DataError: there is no such folder, or it has no train or no val split; lists what was looked for and found.
    """
    root = Path(root)
    check_is_folder(root)
    splits = find_coco_splits(root)
    if 'train' not in splits:
        raise DataError(f'{root} has no annotations of a train split.\n{what_is_there(root)}')
    if 'val' not in splits:
        raise DataError(
            f'{root} has annotations of a train split ({splits["train"].ann_file.relative_to(root)}) but none of a val '
            'split; name it the same way, or let a part of train be split off (--val-fraction 0.1)'
        )
    return CocoFolder(root, splits['train'], splits['val'], splits.get('test', splits['val']))


def find_coco_splits(root: Path) -> dict[str, CocoSplit]:
    """The splits of a COCO-format folder, by their names; one annotation file alone is the train split."""
    files = {path.relative_to(root).as_posix().casefold(): path for path in _json_files(root)}
    splits = {name: split for name in SPLIT_NAMES if (split := _find_split(root, name, files))}
    if not splits and (lone := _find_lone_file(root)):
        own = lone.stem.removeprefix('instances_')  # CVAT's 'default', or the name of its only subset
        splits = dict(train=CocoSplit('train', lone, _find_images(root, [own, 'train'], lone)))
    return splits


def check_is_folder(root: Path) -> None:
    if not root.is_dir():
        was = (
            'a file: give the folder that it lies in'
            if root.exists()
            else 'missing, expected a folder of labelled images'
        )
        raise DataError(f'{root} is {was}')


def what_is_there(root: Path) -> str:
    """For an error: what was looked for, and what was found instead."""
    looked_for = ', '.join(file.format(split='train') for file in ANNOTATION_FILES)
    found = [str(path.relative_to(root)) for path in _json_files(root)]
    return f'  looked for: {looked_for}\n  JSON files found: {", ".join(found[:20]) or "none"}'


def read_coco(ann_file: Path, lists: Sequence[str] = LISTS) -> dict:
    """Parse an annotation file, in UTF-8 or, where it says so itself, UTF-16 or UTF-32.

    Args:
        lists: that it must have.

    Raises:
        DataError: it is missing, too large, no JSON, or its top level is not a COCO dict of lists of dicts.
    """
    data = read_annotations(ann_file)
    try:
        coco = json.loads(data.decode(json.detect_encoding(data)))
    except UnicodeDecodeError as error:
        raise DataError(f'{ann_file} is not JSON in UTF-8 ({error}): save it as UTF-8') from None
    except json.JSONDecodeError as error:
        raise DataError(f'{ann_file} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}') from None
    except RecursionError:
        raise DataError(f'{ann_file}: lists or dicts in it are nested too deeply') from None
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise DataError(f'{ann_file} holds a number with too many digits') from None
    if not isinstance(coco, dict):
        raise DataError(
            f'{ann_file} holds a {type(coco).__name__}, expected a dict with images, annotations, categories'
        )
    for key in lists:
        value = coco.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            was = f'a {type(value).__name__}' if key in coco else 'missing'
            raise DataError(f'{ann_file}: {key!r} is {was}, expected a list of dicts')
    return coco


def write_coco(ann_file: Path, coco: dict) -> None:
    """Write an annotation file.

    Raises:
        DataError: lists or dicts in it are nested too deeply.
    """
    try:
        text = json.dumps(coco)
    except RecursionError:
        raise DataError(f'{ann_file}: lists or dicts are nested too deeply to be written') from None
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    ann_file.write_text(text)


def is_plain_utf8(ann_file: Path) -> bool:
    """Whether other readers of JSON take the file as well: no byte order mark and no UTF-16."""
    with open(ann_file, 'rb') as file:
        return json.detect_encoding(file.read(4)) == 'utf-8'


def _json_files(root: Path) -> list[Path]:
    return sorted([*root.glob('*.json'), *root.glob('*/*.json')])


def _find_split(root: Path, name: str, files: dict[str, Path]) -> CocoSplit | None:
    for file, alias in product(ANNOTATION_FILES, SPLIT_NAMES[name]):
        ann_file = files.get(file.format(split=alias))
        if ann_file and ann_file.is_file():
            return CocoSplit(name, ann_file, _find_images(root, [alias], ann_file))
    return None


def _find_lone_file(root: Path) -> Path | None:
    """The only JSON file with COCO's lists, as of Label Studio (result.json) and CVAT (instances_default.json)."""
    found = [path for path, error in _read_candidates(root) if error is None]
    return found[0] if len(found) == 1 else None


def passed_over(root: Path) -> list[str]:
    """Why JSON files of a folder are no annotations; each sentence names its file."""
    return [str(error) for _, error in _read_candidates(root) if error is not None]


def _read_candidates(root: Path) -> list[tuple[Path, DataError | None]]:
    outcomes = []
    for path in sorted([*root.glob('*.json'), *root.glob('annotations/*.json')]):
        try:
            read_coco(path)
            outcomes.append((path, None))
        except DataError as error:
            outcomes.append((path, error))
    return outcomes


def _find_images(root: Path, aliases: Sequence[str], ann_file: Path) -> Path:
    """The folder with most of the first images; where none has any, the first that exists: the check will complain."""
    images = read_coco(ann_file)['images'][:20]
    names = [image['file_name'] for image in images if type(image.get('file_name')) is str]
    there = _folders(root)
    wanted = [folder.format(split=alias).casefold() for folder in IMAGE_DIRS for alias in aliases]
    folders = [there[folder] for folder in wanted if folder in there]
    found = {folder: sum(os.path.isfile(folder / name) for name in names) for folder in folders}
    if not any(found.values()):
        found = {folder: len(misspelt_names(folder, images)) for folder in folders}
    return max(found, key=found.get)


def _folders(root: Path) -> dict[str, Path]:
    """The root, its folders and theirs, by their paths in small letters."""
    found = {'.': root}
    for folder, inner, _ in os.walk(root, followlinks=True):
        inner.sort()  # capitals first: of names that differ in them alone, the one in small letters counts
        found.update((path.relative_to(root).as_posix().casefold(), path) for path in (Path(folder, i) for i in inner))
        if Path(folder) != root:
            inner.clear()
    return found
