"""Recognise label files of formats that are not read, so that the user is told which they are."""

import json
from collections.abc import Iterable
from pathlib import Path
from xml.parsers import expat

from ..errors import DataError
from ..files import read_annotations
from .parse_xml import parse_xml
from .tree import Tree

MAX_FILES = 20  # that are looked into
INSTEAD = {
    'LabelMe': 'convert the labels to COCO, YOLO or Pascal VOC',
    'CVAT for images (XML)': 'export the labels as COCO 1.0 or YOLO',
    'Label Studio (JSON)': 'export the labels as COCO or YOLO',
    'CreateML': 'export the labels as COCO or YOLO',
}


def unread_format(tree: Tree) -> str:
    """A sentence about the first file of a format that is not read, or ''."""
    for path in tree.of('.json', '.xml')[:MAX_FILES]:
        if kind := format_of(path):
            return f'{tree.relative(path)} is in the format of {kind}, which is not read: {INSTEAD[kind]}'
    return ''


def beside(tree: Tree, pictures: Iterable[Path]) -> dict[Path, str]:
    """Pictures whose labels are in a format that is not read: the name of that file, and its format."""
    files = tree.by_key(tree.of('.json'))
    found = {}
    for picture in pictures:
        for path in files.get(tree.key(picture), ()) if files else ():
            if kind := format_of(path):
                found[picture] = f'{tree.relative(path)}, {kind}'
    return found


def format_of(path: Path) -> str:
    """The format of a label file that is not read, or ''."""
    try:
        data = read_annotations(path)
        return _kind_of_xml(data) if path.suffix.lower() == '.xml' else _kind_of_json(json.loads(data))
    except (DataError, ValueError, RecursionError, expat.ExpatError):
        return ''


def _kind_of_xml(data: bytes) -> str:
    root = parse_xml(data)
    return 'CVAT for images (XML)' if root.tag == 'annotations' and root.find('image') is not None else ''


def _kind_of_json(content) -> str:
    if isinstance(content, dict):
        return 'LabelMe' if isinstance(content.get('shapes'), list) and 'imagePath' in content else ''
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return ''
    if 'annotations' in first and 'image' in first:
        return 'CreateML'
    full = 'data' in first and ('annotations' in first or 'completions' in first)
    return 'Label Studio (JSON)' if full or 'annotation_id' in first else ''
