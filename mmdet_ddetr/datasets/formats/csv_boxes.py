"""A CSV of boxes: one box a row, with the image's name, the class and four numbers, with or without a header.

The columns of Roboflow (TensorFlow), keras-retinanet, Open Images, Google AutoML, VIA and of whoever wrote a table by
hand.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from ..errors import DataError
from ..files import read_annotations
from ..image_file import SUFFIXES
from .labels import Box, Labels, Picture, finite, number_classes
from .tree import ALIASES, Tree

# names of columns, in small letters and digits alone
IMAGE = 'filename file image imagename imagepath imagefile imageid img imgpath imgname path filepath uri frame photo'
LABEL = 'class classname label labelname category categoryname object objectname tag name classid labelid'
SPLIT = 'split set subset usage partition'
WIDTH, HEIGHT = 'imagewidth imgwidth width w', 'imageheight imgheight height h'
X1, Y1 = 'xmin x1 left x0 xtl bboxxmin bboxx1', 'ymin y1 top y0 ytl bboxymin bboxy1'
X2, Y2 = 'xmax x2 right xbr bboxxmax bboxx2', 'ymax y2 bottom ybr bboxymax bboxy2'
CENTRE = 'xcenter xcentre centerx centrex xc cx', 'ycenter ycentre centery centrey yc cy'
SIDES = 'bboxwidth bboxw boxwidth w width', 'bboxheight bboxh boxheight h height'  # width may be the image's
CORNER = f'x bboxx boxx {X1}', f'y bboxy boxy {Y1}'
ONE_COLUMN = 'bbox box boundingbox'
READ_NAMES = (
    'filename (or image, image_id, path), class (or class_name, label, category), and xmin, ymin, xmax, ymax (or x, y, '
    'width, height; or x_center, y_center, width, height)'
)
ONE_CLASS = 'object'  # its name, where no column has any
SETS = {**ALIASES, 'validate': 'val', 'unassigned': 'train'}  # Google AutoML's
SAMPLE = 200  # rows that tell what the columns are
ROUNDING = 0.01  # a share that leaves [0, 1] by so much is one that was rounded


@dataclass
class Columns:
    """Positions in a row. ``box`` has four, or one whose text holds the four numbers."""

    image: int
    label: int | None
    box: Sequence[int]
    kind: str  # 'corners', 'corner and sides' or 'centre and sides'; '': the numbers tell
    size: tuple[int, int] | None = None
    split: int | None = None
    header: Sequence[str] = ()
    via: int | None = None  # VIA's column of attributes, whose first is the class


def find_csv(tree: Tree) -> Labels | None:
    """The data set below a folder, if it has tables of boxes."""
    labels = Labels(tree, 'CSV')
    reader = _Reader(labels)
    for path in tree.of('.csv', '.tsv'):
        lines = rows_of(path)
        columns = _columns_of([row for _, row in islice(lines, SAMPLE)], path)
        if columns:
            reader.read(path, columns)
    if not labels.splits:
        return None
    labels.leave_out_unlabelled('image without a row in a CSV file')
    number_classes(labels)
    return labels


def rows_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of the rows that are not empty."""
    data = read_annotations(path)
    try:
        text = data.decode('utf-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is not text in UTF-8 ({error}): save it as UTF-8') from None
    lines = text.splitlines(keepends=True)
    first = next((line for line in lines if line.strip()), '')
    reader = csv.reader(lines, delimiter=max(',;\t|', key=first.count), skipinitialspace=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise DataError(f'{path}, line {reader.line_num}: {error}') from None


def _columns_of(rows: list[list[str]], path: Path) -> Columns | None:
    """What the columns mean; None where they are no boxes."""
    if not rows:
        return None
    if sum(_number(cell) is not None for cell in rows[0]) >= 4:
        return _columns_without_header(rows, path)
    header = [re.sub('[^a-z0-9]', '', cell.lower()) for cell in rows[0]]

    def position(names: str) -> int | None:
        return next((header.index(name) for name in names.split() if name in header), None)

    def positions(*names: str) -> list[int] | None:
        found = [position(words) for words in names]
        return None if None in found or len(set(found)) < len(found) else found

    image, label, kind, via = position(IMAGE), position(LABEL), '', None
    size = positions(WIDTH, HEIGHT)
    if box := positions(X1, Y1, X2, Y2):
        kind = 'corners'
    elif box := positions(*CENTRE, *SIDES):
        kind = 'centre and sides'
    elif box := positions(*CORNER, *SIDES):
        kind = 'corner and sides'
    elif box := positions('regionshapeattributes'):
        label = via = position('regionattributes')
        kind = 'corner and sides'
    else:
        box = positions(ONE_COLUMN)
    if image is None or box is None:
        return None
    size = None if size is None or set(size) & set(box) else tuple(size)
    return Columns(image, label, box, kind, size, position(SPLIT), rows[0], via)


def _columns_without_header(rows: list[list[str]], path: Path) -> Columns | None:
    width = max(len(row) for row in rows)
    cells = [[row[i] for row in rows if i < len(row) and row[i]] for i in range(width)]
    numbers = [i for i in range(width) if cells[i] and all(_number(cell) is not None for cell in cells[i])]
    texts = [i for i in range(width) if cells[i] and i not in numbers]
    image = next((i for i in texts if any(cell.lower().endswith(SUFFIXES) for cell in cells[i])), None)
    split = next((i for i in texts if i != image and all(cell.lower() in SETS for cell in cells[i])), None)
    label = next((i for i in texts if i not in (image, split)), None)
    if label is None and image is not None and len(numbers) == 5:
        label = _numeric_class(numbers, cells, path)
        numbers.remove(label)
    if image is None or len(numbers) != 4:
        return None
    return Columns(image, label, numbers, '', split=split)


def _numeric_class(numbers: list[int], cells: list[list[str]], path: Path) -> int:
    """Which of five columns of numbers is the class: one of whole numbers that leaves four side by side."""
    first, last = numbers[0], numbers[-1]
    beside = [(first, numbers[1:]), (last, numbers[:-1])]
    options = [column for column, box in beside if box[-1] - box[0] == 3]
    options = [column for column in options if all(_number(cell) % 1 == 0 for cell in cells[column])]
    if len(options) != 1:
        columns = ', '.join(str(column + 1) for column in numbers)
        raise DataError(
            f'{path}, line 1: columns {columns} are numbers and there is no header, so that the class cannot be told '
            'from the box; write a header such as filename,class,xmin,ymin,xmax,ymax'
        )
    return options[0]


class _Reader:
    def __init__(self, labels: Labels):
        self.labels, self.tree = labels, labels.tree
        self.by_name, self.found = defaultdict(list), {}
        for path in self.tree.pictures:
            self.by_name[path.name.casefold()].append(path)
            self.by_name[path.stem.casefold()].append(path)

    def read(self, file: Path, columns: Columns) -> None:
        name, split_of_file = self.tree.relative(file), self._split_of(file)
        rows = islice(rows_of(file), 1 if columns.header else 0, None)
        boxes, pictures = [], {}
        for line, row in rows:
            place = f'{name}, line {line}'
            row += [''] * (len(columns.header) - len(row))
            split = split_of_file
            if columns.split is not None and columns.split < len(row):
                split = SETS.get(row[columns.split].lower(), split)
            if columns.image >= len(row) or not row[columns.image]:
                self.labels.fault(
                    split, 'error', 'row without the name of an image', f'{place}: {",".join(row)[:80]!r}'
                )
                continue
            path = self._image(file, row[columns.image], split)
            if (split, path) not in pictures:
                size = [_number(row[i]) for i in columns.size or () if i < len(row)]
                size = tuple(map(int, size)) if size and None not in size else None
                pictures[split, path] = Picture(path, place, size=size)
            texts = self._texts(columns, row)
            if not any(texts):
                continue  # an image without objects
            values = [_number(text) for text in texts]
            if len(values) != 4 or None in values:
                what = ', '.join(texts)[:80]
                self.labels.fault(split, 'error', 'row without the four numbers of a box', f'{place}: {what!r}')
                continue
            label = self._label(columns, row)
            if not label:
                self.labels.fault(split, 'error', 'row without a class', place)
                continue
            boxes.append((split, pictures[split, path], Box(label, tuple(values), place)))
        kind, scaled = self._interpret([(picture, box) for _, picture, box in boxes], columns.kind)
        for split, picture, box in boxes:
            picture.scaled = scaled
            outside = next((value for value in box.corners if not -ROUNDING <= value <= 1 + ROUNDING), None)
            if scaled and outside is not None:
                rule = 'coordinate outside of [0, 1], while most of the file are shares of width and height'
                self.labels.fault(split, 'error', rule, f'{box.place}: {outside:g}')
                continue
            box.corners = _corners(box.corners, kind)
            picture.boxes.append(box)
        for (split, _), picture in pictures.items():
            self.labels.splits[split].append(picture)
        unit = 'shares of width and height' if scaled else 'px'
        header = 'no header' if not columns.header else 'columns ' + ', '.join(
            columns.header[i] for i in (columns.image, columns.label, *columns.box) if i is not None
        )  # fmt: skip
        if columns.label is None:
            rule = 'CSV file in which no column of classes was found'
            remedy = (
                f'all boxes are of one class, {ONE_CLASS!r}; the names class, class_name, label and category are read'
            )
            self.labels.fault('', 'warning', rule, f'{name}: {", ".join(columns.header) or header}', remedy)
        self.labels.notes.append(f'{name}: {header}; boxes are {kind} in {unit}')

    def _split_of(self, file: Path) -> str:
        words = re.split('[^a-z]+', file.stem.lower())
        return next((ALIASES[word] for word in words if word in ALIASES), '') or self.tree.split_of(file)

    def _texts(self, columns: Columns, row: list[str]) -> list[str]:
        """The four numbers of a box, as they are written."""
        cells = [row[i] if i < len(row) else '' for i in columns.box]
        if columns.via is not None:
            shape = _json(cells[0])
            xs, ys = shape.get('all_points_x'), shape.get('all_points_y')
            if xs and ys:
                shape = dict(x=min(xs), y=min(ys), width=max(xs) - min(xs), height=max(ys) - min(ys))
            return [str(shape[key]) for key in ('x', 'y', 'width', 'height') if key in shape]
        return re.findall(r'[^\s,;\[\]()]+', cells[0]) if len(cells) == 1 else cells

    def _label(self, columns: Columns, row: list[str]) -> str:
        if columns.label is None:
            return ONE_CLASS
        text = row[columns.label] if columns.label < len(row) else ''
        if columns.via is not None:
            value = next(iter(_json(text).values()), '')
            text = next(iter(value), '') if isinstance(value, dict) else str(value)
        return ' '.join(text.split())

    def _image(self, file: Path, text: str, split: str) -> Path:
        """The picture that a row means: relative to the table, to the root, absolute, or as far as its end leads."""
        key = file.parent, text, split
        if key not in self.found:
            parts = [part for part in Path(text.replace('\\', '/')).parts if part not in ('/', '..', '.')]
            options = [folder / text for folder in (file.parent, self.tree.root)]
            options += [self.tree.root.joinpath(*parts[start:]) for start in range(len(parts) - 1)]
            named = self.by_name.get(parts[-1].casefold() if parts else '', [])
            options += sorted(named, key=lambda path: bool(split) and self.tree.split_of(path) != split)
            self.found[key] = self.tree.spelled(next((path for path in options if _is_file(path)), options[0]))
        return self.found[key]

    def _interpret(self, boxes: list[tuple[Picture, Box]], kind: str) -> tuple[str, bool]:
        """What the four numbers of a box are, where no header says so, and whether they are shares."""
        numbers = [box.corners for _, box in boxes]
        if not kind:
            ordered = sum(c > a and d > b for a, b, c, d in numbers)
            sized = [(*picture.size, *box.corners) for picture, box in boxes if picture.size]
            all_inside = sized and all(
                a + c <= width + 1 and b + d <= height + 1 for width, height, a, b, c, d in sized
            )
            kind = 'corners' if ordered >= 0.9 * len(numbers) and not all_inside else 'corner and sides'
        return kind, bool(numbers) and median(max(values) for values in numbers) <= 1


def _corners(values: tuple[float, ...], kind: str) -> tuple[float, float, float, float]:
    a, b, c, d = values
    if kind == 'corners':
        return values
    return (a, b, a + c, b + d) if kind == 'corner and sides' else (a - c / 2, b - d / 2, a + c / 2, b + d / 2)


def _number(text: str) -> float | None:
    return finite(text.replace(',', '.'))


def _json(text: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
