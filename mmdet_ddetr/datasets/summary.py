"""What a checked data set holds, in figures: tables for the console and for pages."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .report import Report, printable

MAX_CLASSES = 24  # of a table in the console
MAX_NAME = 32  # characters of a class's name there


def split_table(reports: Mapping[str, Report]) -> list[list[str]]:
    """A row a split, under a head: counts, and sizes in px. Boxes and images with errors are not counted."""
    rows = [['split', 'images', 'empty', 'boxes', 'an image', 'most', 'image size', 'box size', 'smallest']]
    for name, report in reports.items():
        boxes = [annotation for annotation in report.annotations if not annotation.iscrowd]
        per_image = Counter(annotation.image_id for annotation in boxes)
        images = [image for image in report.images if image.index not in report.bad_images]
        counts = [per_image[image.id] for image in images]
        sizes = Counter((facts.width, facts.height) for facts in report.facts.values())
        sides = np.array([annotation.bbox[2:] for annotation in boxes]).reshape(-1, 2)
        rows.append(
            [
                name,
                str(len(images)),
                str(counts.count(0)),
                str(len(boxes)),
                f'{np.median(counts):g}' if counts else '-',
                str(max(counts, default=0)),
                _size_of_most(sizes),
                f'{np.sqrt(np.median(sides.prod(1))):.0f}' if boxes else '-',
                f'{sides.min():.3g}' if boxes else '-',
            ]
        )
    return rows


def class_table(reports: Mapping[str, Report]) -> list[list[str]]:
    """A row a class, under a head: its boxes in each split. Most frequent first."""
    counts = {
        name: Counter(a.category_id for a in report.annotations if not a.iscrowd) for name, report in reports.items()
    }
    train = reports['train']
    gone = {*train.merged, *train.dropped}
    classes = [(category.id, category.name) for category in train.categories if category.id not in gone]
    classes.sort(key=lambda item: -sum(count[item[0]] for count in counts.values()))
    rows = [['class', *counts]]
    return rows + [[printable(name), *(str(count[id]) for count in counts.values())] for id, name in classes]


def as_text(rows: Sequence[Sequence[str]], max_rows: int = MAX_CLASSES) -> str:
    """A table for the console; of more rows than ``max_rows`` the middle is left out."""
    rows = [[row[0][:MAX_NAME], *row[1:]] for row in rows]
    hidden = len(rows) - 1 - max_rows
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '  '.join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) for row in rows
    ]
    if hidden > 0:
        half = max_rows // 2
        lines = [*lines[: half + 1], f'... {hidden} more', *lines[half + 1 + hidden :]]
    return '\n'.join(lines)


def _size_of_most(sizes: Counter) -> str:
    """The size that most images have, and how many of all that are, where it is not all."""
    if not sizes:
        return '-'
    (width, height), count = sizes.most_common(1)[0]
    share = '' if len(sizes) == 1 else f' ({count / sizes.total():.0%})'
    return f'{width}x{height}{share}'
