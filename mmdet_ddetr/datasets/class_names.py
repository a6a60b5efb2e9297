"""The classes of a config and the categories of an annotation file, matched by name."""

import json
import mmap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import count
from pathlib import Path

from .errors import DataError

LIKENESS = (
    0.75  # difflib's ratio from which a name is taken for another one misspelt: one letter of 'square', or a plural
)
SHOWN = 8  # names in a message


@dataclass
class Comparison:
    """What does not fit between the classes of a config and the categories of a file, as sentences.

    Attributes:
        errors: there is nothing to train on, or the classes are no list of names.
        doubts: a name is misspelt, or the classes are not this file's.
        notes: what may well be meant: a subset of the file's categories, classes that this file does not have.
    """

    errors: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def faults_of(classes) -> list[str]:
    """What is wrong with ``classes`` of a ``metainfo`` by itself."""
    if isinstance(classes, str):
        return [
            f'classes is the text {classes!r}, expected a tuple of names. A tuple of one needs a comma: '
            f'classes=({classes!r},)'
        ]
    if not isinstance(classes, Sequence) or not classes or not all(isinstance(name, str) for name in classes):
        return [f"classes is {classes!r}, expected a tuple of names such as classes=('circle', 'square')"]
    twice = sorted({name for name in classes if classes.count(name) > 1})
    return [f'classes has {listed(twice)} more than once; a name is one class'] if twice else []


def compare(classes: Sequence[str], names: Sequence[str], file: str | Path, is_default: bool = False) -> Comparison:
    """Compare the classes of a config with the category names of an annotation file.

    Args:
        classes: of the ``metainfo``.
        names: of the file's categories, in the file's order.
        file: what the sentences call it.
        is_default: the classes are those of the dataset's type, say COCO's 80, as the config names none.
    """
    found = Comparison(errors=faults_of(classes))
    if found.errors:
        return found
    if not names:
        found.errors.append(f'{file} has no categories')
        return found
    names = list(dict.fromkeys(str(name) for name in names))
    missing = [name for name in classes if name not in names]
    unused = [name for name in names if name not in classes]
    meant = {name: near for name in missing if (near := _nearest(name, unused))}
    origin = 'of the dataset type (the config has no metainfo)' if is_default else 'in metainfo'
    if len(missing) == len(classes) and len(meant) < len(classes):
        found.errors.append(
            f'none of the {len(classes)} classes {origin}, {listed(classes)}, is among the {len(names)} categories of '
            f'{file}, {listed(names)}. {_cure(names)}'
        )
    elif is_default and missing and unused:
        found.doubts.append(
            f'{file} has the categories {listed(names)}, and the config has no metainfo, so that the {len(classes)} '
            f'classes of the dataset type count: {listed(unused)} would be left out. {_cure(names)}'
        )
    elif meant:
        pairs = ', '.join(f'{name!r} (did you mean {near!r}?)' for name, near in meant.items())
        found.doubts.append(
            f'metainfo names classes that {file} does not have: {pairs}. '
            f'{_cure([meant.get(name, name) for name in classes])}'
        )
    else:
        if missing:
            found.notes.append(f'{file} has no category for {_classes(len(missing))} {listed(missing)}: no boxes there')
        if unused:
            found.notes.append(
                f'{file}: the boxes of {listed(unused)} are left out, as metainfo does not name '
                f'{"these categories" if len(unused) > 1 else "this category"}'
            )
    return found


def listed(names: Sequence[str]) -> str:
    """Names as a message shows them."""
    rest = f', ... ({len(names)})' if len(names) > SHOWN else ''
    return ', '.join(repr(name) for name in names[:SHOWN]) + rest


def as_tuple(names: Sequence[str]) -> str:
    """Names as a config has them."""
    return repr(tuple(names))


def order_categories(coco, classes: Sequence[str]) -> None:
    """Put the categories of a COCO API into the order of ``classes``: mmdet numbers labels in the order of the file.

    Afterwards ``coco.get_cat_ids(cat_names=classes)`` has one id for every class, in the order of the classes. A class
    that the file lacks gets an id of its own, so that those behind it keep their labels. Of categories with the same
    name the first one gets the boxes of the others.
    """
    by_name, first_of = {}, {}
    for category in coco.dataset.get('categories', []):
        first = by_name.setdefault(category.get('name'), category)
        if first is not category:
            first_of[category['id']] = first['id']
    if first_of:
        _merge(coco, first_of)
    ids = [category['id'] for category in by_name.values()]
    fresh = count(max(ids, default=0) + 1)
    ordered = [by_name.pop(name, None) or dict(id=next(fresh), name=name) for name in classes]
    coco.dataset['categories'] = [*ordered, *by_name.values()]
    coco.cats = {category['id']: category for category in coco.dataset['categories']}


def _merge(coco, first_of: dict) -> None:
    """Give the boxes of a category to the first one of its name: ``first_of[id]``."""
    for annotation in coco.dataset.get('annotations', []):
        for part in annotation.get('segments_info', [annotation]):  # panoptic: the parts have categories
            if part['category_id'] in first_of:
                part['category_id'] = first_of[part['category_id']]
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs


def categories_in(path: str | Path) -> list[dict]:
    """The categories of a COCO file without the rest, which may be hundreds of megabytes; [] if there are none."""
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        key = b'"categories"'
        if content.find(key) == content.rfind(key) >= 0:  # else one of them is not the file's
            start = content.find(b':', content.find(key)) + 1
            if categories := _decode(content, start):
                return categories
    return _categories(json.loads(Path(path).read_bytes()).get('categories'))


def _decode(content: mmap.mmap, start: int) -> list[dict]:
    """The list that begins at ``start``."""
    size = 2**16
    while True:
        text = content[start : start + size].decode('utf-8', errors='ignore').lstrip()
        try:
            return _categories(json.JSONDecoder().raw_decode(text)[0])
        except ValueError:
            if start + size >= len(content):
                return []
            size *= 8


def _categories(value) -> list[dict]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict) and 'id' in item and 'name' in item]


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """The one of ``names`` that ``name`` may mean: without regard to capitals, spaces and the like first."""
    plain = {_plain(other): other for other in names}
    near = get_close_matches(_plain(name), plain, n=1, cutoff=LIKENESS)
    swapped = [other for other in plain if sorted(other) == sorted(_plain(name))]  # 'dgo': too short for the ratio
    return plain[(near + swapped)[0]] if near or swapped else None


def _plain(name: str) -> str:
    return ''.join(c for c in unicodedata.normalize('NFKC', name).casefold() if c.isalnum())


def _cure(names: Sequence[str]) -> str:
    return (
        f'Write the names as they stand in the file: metainfo=dict(classes={as_tuple(names)}) in the dataset of every '
        f'loader, and num_classes={len(names)} in the heads'
    )


def _classes(number: int) -> str:
    return 'the class' if number == 1 else 'the classes'


def check(found: Comparison) -> None:
    """Raise DataError with what makes a comparison useless."""
    if found.errors:
        raise DataError('; '.join(found.errors))
