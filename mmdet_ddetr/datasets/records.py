"""The entries of a COCO file with the types that everything behind the check relies on."""

import math
import re
from dataclasses import dataclass

MAX_ID = 2**53 - 1  # COCO's evaluation keeps ids in float64
MAX_COORDINATE = 1e6  # px: no image is as large
MAX_AREA = 1e10  # px: the COCO metric ignores what is larger
MAX_DEPTH = 20  # of lists and dicts within each other
NUMBERS = {int, float}
LABELLED_IN = 'labelled_in'  # of an entry that was converted from another format: the user's own file, and its line
NOT_IN_A_LINE = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+')


@dataclass(slots=True)
class Category:
    index: int  # in the file's list
    id: int
    name: str
    group: str  # its supercategory, or ''


@dataclass(slots=True)
class ImageEntry:
    index: int
    id: int
    file_name: str
    width: float | None  # as the file says; None: it does not
    height: float | None
    whole: bool  # both are integers
    labelled_in: str = ''

    @property
    def place(self) -> str:
        """What a message calls it."""
        return self.labelled_in or f'image {self.id}'


@dataclass(slots=True)
class Annotation:
    index: int
    id: int | None  # None: missing, or no id
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height
    area: float | None
    iscrowd: int | None
    labelled_in: str = ''

    @property
    def place(self) -> str:
        """What a message calls it."""
        id = f'number {self.index}' if self.id is None else self.id
        return self.labelled_in or f'annotation {id} in image {self.image_id}'


def identifier(value) -> int | None:
    """An id: an integer in 0..MAX_ID, also where it is written as 3.0; else None."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_ID else None


def number(value) -> float | None:
    """A number, which may be infinite or nan; else None."""
    if type(value) not in NUMBERS:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def side(value) -> float | None:
    """A width or height, also where it is written as text; None where there is nothing that can be compared."""
    if isinstance(value, str) and re.fullmatch(r'\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*', value):
        return float(value)
    return number(value)


def crowd(value) -> int | None:
    """0 or 1, also where it is written as false, 1.0 or "0"; else None."""
    return {'0': 0, '1': 1}.get(value) if isinstance(value, str) else int(value) if value in (0, 1) else None


def class_name(value) -> str:
    """A name in one line; '' where there is none."""
    if type(value) in NUMBERS:
        value = str(value)
    if not isinstance(value, str):
        return ''
    return NOT_IN_A_LINE.sub(' ', value).strip() if NOT_IN_A_LINE.search(value) else value


def labelled_in(entry: dict) -> str:
    """The file and line that an entry comes from, or ''."""
    value = entry.get(LABELLED_IN)
    return value if isinstance(value, str) else ''


def is_segmentation(value) -> bool:
    """Whether it can be a mask: polygons, or an encoded mask."""
    if isinstance(value, dict):
        return not too_deep(value)
    return isinstance(value, list) and all(type(part) is list and NUMBERS.issuperset(map(type, part)) for part in value)


def too_deep(value) -> bool:
    """Whether lists and dicts lie deeper within each other than MAX_DEPTH: what copies them fails there."""
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [item for outer in layer for item in _items(outer) if isinstance(item, list | dict)]
        if not layer:
            return False
    return True


def without_deep(entry: dict) -> dict:
    """A copy without what is ``too_deep``."""
    return {key: value for key, value in entry.items() if not isinstance(value, list | dict) or not too_deep(value)}


def _items(value):
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
