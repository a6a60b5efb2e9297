"""The door of a data set: entries of a COCO file become records of known types, or a finding with its place.

Nothing behind this looks at the file's own entries.
"""

import os
from collections import defaultdict

from .coco_folder import LISTS
from .file_names import REMEDY, RULE, misspelt_names
from .records import (
    MAX_AREA,
    MAX_COORDINATE,
    MAX_DEPTH,
    MAX_ID,
    Annotation,
    Category,
    ImageEntry,
    class_name,
    crowd,
    identifier,
    is_segmentation,
    labelled_in,
    number,
    side,
    too_deep,
)
from .report import Report, printable, shown

MAX_NAME = 255  # characters of a category's name


def read_categories(report: Report) -> None:
    if not report.coco['categories']:
        report.add('error', 'no categories')
    for index, entry in enumerate(report.coco['categories']):
        place = f'categories[{index}]: {shown(entry)}'
        id, name, group = identifier(entry.get('id')), class_name(entry.get('name')), entry.get('supercategory')
        if id is None:
            report.add('error', f'category id is not an integer in 0..{MAX_ID}', place)
        if not name:
            report.add('error', 'category without a name', place)
        elif len(name) > MAX_NAME:
            report.add('error', f'category name of more than {MAX_NAME} characters', place)
        elif name != entry['name']:
            report.repair('warning', 'category name that is no text in one line', place, f'{shown(name)} in a copy')
        if id is not None and name:
            _note_decimals(report, entry, ('id',))
            report.categories.append(Category(index, id, name, class_name(group)))
    ids = [category.id for category in report.categories]
    if ids and sorted(ids) != list(range(min(ids), min(ids) + len(ids))):
        report.add(
            'note',
            'category ids have gaps, which is fine: labels count the categories, not the ids',
            str(sorted(ids))[:80],
        )
    if ids != sorted(ids):
        remedy = 'sorted in a copy: labels follow the file order'
        report.repair('note', 'categories are not sorted by id', remedy=remedy)


def read_images(report: Report) -> None:
    positions = defaultdict(list)
    misspelt = misspelt_names(report.image_dir, report.coco['images'])
    for index, entry in enumerate(report.coco['images']):
        id, file_name = identifier(entry.get('id')), entry.get('file_name')
        if id is None:
            fault = f'image id is not an integer in 0..{MAX_ID}'
        elif not isinstance(file_name, str) or not file_name:
            fault = 'image without file_name'
        else:
            fault = None
        if id is not None:
            positions[id].append(index)
        if fault:
            report.bad_images.add(index)
            report.add('error', fault, f'images[{index}]: {shown(entry)}')
            continue
        _note_decimals(report, entry, ('id',))
        if file_name in misspelt:
            report.repair('note', RULE, f'{file_name} -> {misspelt[file_name]}', REMEDY)
            file_name = misspelt[file_name]
        width, height = entry.get('width'), entry.get('height')
        whole = type(width) is int and type(height) is int
        report.images.append(ImageEntry(index, id, file_name, side(width), side(height), whole, labelled_in(entry)))
        if os.path.isabs(file_name) or '..' in file_name.replace('\\', '/').split('/'):
            rule = 'file_name that leads out of the image folder'
            report.add('warning', rule, f'{report.images[-1].place} ({file_name})', 'read all the same')
    for id, indices in positions.items():
        if len(indices) > 1:
            names = [report.coco['images'][index].get('file_name') for index in indices]
            # where all mean one file, the first stays; else nobody knows whose the boxes are
            same_file = all(isinstance(name, str) for name in names) and len(set(names)) == 1
            report.bad_images.update(indices[1:] if same_file else indices)
            report.add('error', 'image id given twice', f'id {id}: {", ".join(map(_text, names))}')
    if not report.coco['images']:
        report.add('error', 'no images')


def read_annotations(report: Report) -> None:
    # the first of each id, bad or not: what lies in a bad image goes with it and needs no word of its own
    images = {}
    for index, entry in enumerate(report.coco['images']):
        if (id := identifier(entry.get('id'))) is not None:
            images.setdefault(id, index)
    categories = {category.id for category in report.categories}
    for index, entry in enumerate(report.coco['annotations']):
        image_id, category_id = identifier(entry.get('image_id')), identifier(entry.get('category_id'))
        iscrowd = crowd(entry.get('iscrowd') or 0)
        bbox, fault, detail = None, None, ''
        if missing := [key for key in ('image_id', 'category_id', 'bbox') if key not in entry]:
            fault = f'annotation without {", ".join(missing)}'
        elif image_id not in images:
            fault = 'annotation of an image id that is not in images'
        elif category_id not in categories:
            fault = 'category_id that is not in categories'
            known = f'{min(categories)}..{max(categories)}, {len(categories)} of them' if categories else 'none'
            detail = f': category_id {shown(entry["category_id"])}, known are {known}'
        elif iscrowd is None:
            fault, detail = 'iscrowd is neither 0 nor 1', f': iscrowd {shown(entry["iscrowd"])}'
        else:
            bbox, fault = _read_box(entry['bbox'])
            if fault:
                file_name = report.coco['images'][images[image_id]].get('file_name')
                detail = f' ({_text(file_name)}): bbox {shown(entry["bbox"])}'
        if fault:
            report.bad_annotations.add(index)
            report.add('error', fault, _place(index, entry) + detail)
        elif images[image_id] in report.bad_images:
            report.bad_annotations.add(index)
        else:
            id, area = identifier(entry.get('id')), number(entry.get('area'))
            annotation = Annotation(index, id, image_id, category_id, bbox, area, iscrowd, labelled_in(entry))
            report.annotations.append(annotation)
            _note_gaps(report, entry, annotation)


def _read_box(bbox) -> tuple[tuple[float, ...] | None, str | None]:
    """Four finite numbers, or the rule that is broken."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None, 'bbox is not a list of four numbers [x, y, width, height]'
    values = tuple(number(value) for value in bbox)
    if None in values:
        return None, 'bbox is not a list of four numbers [x, y, width, height]'
    if not all(abs(value) <= MAX_COORDINATE for value in values):  # nan is not, either
        return None, f'bbox with a number that is not finite, or beyond {MAX_COORDINATE:,.0f}'
    if values[2] <= 0 or values[3] <= 0:
        return None, 'bbox without an area'
    return values, None


def _note_gaps(report: Report, entry: dict, annotation: Annotation) -> None:
    """What has one sensible correction."""
    _note_decimals(report, entry, ('image_id', 'category_id', 'id'))
    if entry.get('iscrowd') is None:
        report.repair('note', 'annotation without iscrowd', remedy='0, in a copy')
    elif type(entry['iscrowd']) is not int:
        rule = 'iscrowd is not the number 0 or 1'
        report.repair('note', rule, _place(annotation.index, entry), 'so written in a copy')
    if annotation.area is None or not 0 < annotation.area <= MAX_AREA:
        annotation.area = None
        rule = 'annotation without a positive area'
        report.repair('warning', rule, _place(annotation.index, entry), 'width x height, in a copy')
    if entry.get('segmentation') and not is_segmentation(entry['segmentation']):
        rule = 'segmentation that is neither polygons nor an encoded mask'
        place = f'{_place(annotation.index, entry)}: {shown(entry["segmentation"])}'
        report.repair('warning', rule, place, 'left out in a copy')
    if entry.get('ignore'):
        rule = 'annotation marked "ignore": training leaves it out, the evaluation does not'
        report.add('warning', rule, _place(annotation.index, entry))


def _note_decimals(report: Report, entry: dict, keys: tuple[str, ...]) -> None:
    if any(type(entry.get(key)) is float for key in keys):
        report.repair('note', 'id written as a decimal number, such as 3.0', remedy='as an integer, in a copy')


def read_rest(report: Report) -> None:
    """What else lies in the file goes into copies of it, so it must not be nested without end."""
    for part in (report.coco, *(entry for key in LISTS for entry in report.coco[key])):
        for key, value in part.items():
            if key not in LISTS and key != 'segmentation' and isinstance(value, list | dict) and too_deep(value):
                place = f'{shown(key)}: {shown(value)}'
                report.repair('note', f'nested more than {MAX_DEPTH} deep', place, 'left out in a copy')


def _text(file_name) -> str:
    return printable(file_name, 100) if isinstance(file_name, str) else shown(file_name)


def _place(index: int, entry: dict) -> str:
    """An annotation, in words."""
    if source := labelled_in(entry):
        return source
    name = f' in image {shown(entry["image_id"])}' if 'image_id' in entry else ''
    return f'annotation {shown(entry["id"]) if "id" in entry else f"number {index}"}{name}'
