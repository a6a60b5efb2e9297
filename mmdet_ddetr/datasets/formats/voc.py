"""Pascal VOC: an XML file for each picture, beside it or apart, with or without ImageSets."""

from collections import defaultdict
from pathlib import Path
from xml.etree.ElementTree import Element
from xml.parsers import expat

from ..errors import DataError
from ..files import read_annotations
from ..image_file import SUFFIXES
from .labels import Box, Labels, Picture, finite, number_classes
from .parse_xml import LINE, parse_xml
from .tree import ALIASES, Tree

HOME_PARTS = ('annotations', 'imagesets')
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def find_voc(tree: Tree) -> Labels | None:
    """The data set below a folder, if it is one of Pascal VOC's."""
    files = tree.of('.xml')
    if not files:
        return None
    labels = Labels(tree, 'Pascal VOC')
    split_of = _split_of_lists(labels, files) or tree.split_of
    reader = _Reader(labels)
    for path in files:
        split = split_of(path)
        if split is not None:
            reader.read(split, path)
    if not reader.annotations:
        faults = [fault for found in labels.faults.values() for fault in found]
        tree.passed_over += [f'{rule}: {place}' for level, rule, place, _ in faults if level == 'error']
        return None
    labels.leave_out_unlabelled('image without an XML file', tree.of('.xml'))
    reader.count_from_one()
    number_classes(labels)
    return labels


def _split_of_lists(labels: Labels, files: list[Path]):
    """A function from an XML file to its split by the lists of ImageSets; None: there are none."""
    tree = labels.tree
    by_stem = {}
    for path in tree.of('.txt'):
        parent = path.parent.name.lower()
        if path.stem.lower() in (*ALIASES, 'trainval') and (
            parent in ('main', 'imagesets') or path.parent == tree.root
        ):
            by_stem.setdefault(path.stem.lower(), []).append(path)
    if 'train' in by_stem:
        by_stem.pop('trainval', None)
    split_of, xmls = {}, {path.stem: path for path in files}  # wherever it is, or, of several VOCs, beside the list
    xmls.update({(_home(path), path.stem): path for path in files})
    for stem in sorted(by_stem, key=lambda stem: stem == 'trainval'):
        split = ALIASES.get(stem, 'train')
        for file in by_stem[stem]:
            for number, line in enumerate(read_annotations(file).decode('utf-8', 'replace').splitlines(), start=1):
                if not line.strip():
                    continue
                name = Path(line.split()[0]).name
                name = Path(name).stem if name.lower().endswith((*SUFFIXES, '.xml')) else name
                path = xmls.get((_home(file), name)) or xmls.get(name)
                if path is None:
                    place = f'{tree.relative(file)}, line {number}: {name}'
                    labels.fault(split, 'error', 'name in a list without an XML file', place)
                else:
                    split_of.setdefault(path, split)
    if not split_of:
        labels.faults.clear()  # lists of something else
        return None
    if unlisted := [path for path in files if path not in split_of]:
        labels.notes.append(
            f'{len(unlisted)} XML files are in no list and left out, {tree.relative(unlisted[0])} first'
        )
    return split_of.get


def _home(path: Path) -> Path:
    """The folder with Annotations/, JPEGImages/ and ImageSets/ in it: VOCdevkit has one a year."""
    folder = path.parent
    return next((up.parent for up in (folder, *folder.parents) if up.name.lower() in HOME_PARTS), folder)


class _Reader:
    def __init__(self, labels: Labels):
        self.labels, self.tree = labels, labels.tree
        self.pictures = self.tree.by_key(self.tree.pictures)
        self.by_name = defaultdict(list)
        for path in self.tree.pictures:
            self.by_name[path.name.casefold()].append(path)
        self.annotations = 0

    def read(self, split: str, path: Path) -> None:
        place = self.tree.relative(path)
        try:
            root = parse_xml(read_annotations(path))
        except expat.ExpatError as error:
            reason = f'{place}, line {error.lineno}: {expat.ErrorString(error.code)}'
            self.labels.fault(split, 'error', 'file that is not XML', reason)
            return
        except DataError as error:
            self.labels.fault(split, 'error', 'XML file that is not read', f'{place}: {error}')
            return
        if root.tag != 'annotation':
            return
        self.annotations += 1
        picture = Picture(self._image_of(split, path, root), place, size=self._size(split, place, root))
        for item in root.iter('object'):
            if box := self._box(split, f'{place}, line {item.get(LINE)}', item):
                picture.boxes.append(box)
        self.labels.splits[split].append(picture)

    def _image_of(self, split: str, path: Path, root: Element) -> Path:
        """The picture of the XML file's own name, else the one that <filename> names."""
        named = Path((root.findtext('filename') or '').strip().replace('\\', '/')).name
        options = sorted(self.pictures.get(self.tree.key(path), ()), key=lambda p: p.parent != path.parent)
        options += sorted(self.by_name.get(named.casefold(), ()), key=lambda p: self.tree.split_of(p) != split)
        if not options:
            return path.parent / (named or f'{path.stem}.jpg')
        found = next((p for p in options if p.name == named), options[0])
        if found.stem != path.stem and found.stem.casefold() == path.stem.casefold():
            place = f'{self.tree.relative(path)}, for {self.tree.relative(found)}'
            self.labels.fault(split, 'warning', 'label file and image that differ in capitals', place, 'used')
        return found

    def _size(self, split: str, place: str, root: Element) -> tuple[int, int] | None:
        size = root.find('size')
        sides = [finite(size.findtext(side)) if size is not None else None for side in ('width', 'height')]
        if None in sides or min(sides) <= 0:
            line = f', line {size.get(LINE)}: <size> without width and height' if size is not None else ': no <size>'
            remedy = 'taken from the image'
            self.labels.fault(split, 'warning', 'XML without the size of its image', place + line, remedy)
            return None
        return int(sides[0]), int(sides[1])

    def _box(self, split: str, place: str, item: Element) -> Box | None:
        name = ' '.join((item.findtext('name') or '').split())
        if not name:
            return self.labels.fault(split, 'error', 'object without a name', place)
        box = item.find('bndbox')
        if box is None:
            corners = _around_polygon(item.find('polygon'))
            if corners is None:
                turned = ' but a turned one, <robndbox>' if item.find('robndbox') is not None else ''
                return self.labels.fault(split, 'error', 'object without a <bndbox>', f'{place}: {name!r}{turned}')
        else:
            texts = [box.findtext(corner) for corner in CORNERS]
            corners = tuple(finite(text) for text in texts)
            if None in corners:
                which = next(i for i, value in enumerate(corners) if value is None)
                was = 'missing' if texts[which] is None else repr(texts[which][:40])
                place = f'{place}: {CORNERS[which]} is {was}'
                return self.labels.fault(split, 'error', '<bndbox> without four numbers', place)
        difficult = (item.findtext('difficult') or '').strip() in ('1', 'true', 'True')
        if difficult:
            remedy = 'neither trained nor counted, as VOC itself does'
            self.labels.fault(split, 'note', 'object marked difficult', f'{place}: {name!r}', remedy)
        return Box(name, corners, place, ignored=difficult)

    def count_from_one(self) -> None:
        """VOC's first pixel is 1 and the last one belongs to the box; tools that count from 0 betray it by a 0."""
        pictures = [picture for found in self.labels.splits.values() for picture in found]
        boxes = [box for picture in pictures for box in picture.boxes]
        if not any(min(box.corners[:2]) < 1 for box in boxes):
            for box in boxes:
                x1, y1, x2, y2 = box.corners
                box.corners = (x1 - 1, y1 - 1, x2, y2)


def _around_polygon(polygon: Element | None) -> tuple[float, float, float, float] | None:
    """Of CVAT's and Roboflow's <x1>, <y1>, <x2>, ... or labelme's <pt><x>, <y>."""
    values = {'x': [], 'y': []}
    for element in () if polygon is None else polygon.iter():
        if element.tag[:1] in values and element.tag[1:].isdigit() or element.tag in values:
            values[element.tag[0]].append(finite(element.text))
    xs, ys = values.values()
    if not xs or not ys or None in (*xs, *ys):
        return None
    return min(xs), min(ys), max(xs), max(ys)
