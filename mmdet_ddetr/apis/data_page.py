"""A page to look at before training: figures of a data set, what is wrong with it, and pictures with their boxes."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..datasets import DataError, Report, read_image
from ..datasets.records import Annotation, ImageEntry
from ..datasets.report import printable
from ..datasets.summary import class_table, split_table
from ..explain.page import image_uri
from .data_check import DataCheck
from .page import count_table, findings, table, text, write_page
from .pictures import draw_boxes, palette

MAX_SIDE = 640  # px of a picture on the page
SAMPLES = dict(train=12, val=6, test=6)


def write_data_page(check: DataCheck, path: str | Path, seed: int = 0) -> Path:
    """Write an HTML file that needs no other and no network.

    Args:
        check: what was found.
        path: of the file; its folder is made if missing.
        seed: which pictures are drawn.
    """
    splits, classes = split_table(check.reports), class_table(check.reports)
    colours = _colours(check.reports['train'])
    values = dict(
        title=text(check.title),
        subtitle=f'{sum(int(row[1]) for row in splits[1:])} images, {sum(int(row[3]) for row in splits[1:])} boxes of '
        f'{len(classes) - 1} classes',
        notes=''.join(f'<p>{text(note)}</p>' for note in check.notes),
        splits=table(splits),
        classes=count_table(classes, dict(colours.values())),
        findings=findings(check.reports, check.between),
        pictures=''.join(_pictures(name, report, colours, seed) for name, report in check.reports.items()),
    )
    return write_page(path, 'data_page.html', values)


# ------------------------------------------------------------------------------------------------------------- pictures
def choose(report: Report, count: int, seed: int = 0) -> list[ImageEntry]:
    """Images that show every class, the rarest first, as long as there is room; the rest at random."""
    classes = defaultdict(set)
    for annotation in report.annotations:
        classes[annotation.image_id].add(annotation.category_id)
    images = [image for image in report.images if image.index in report.facts and image.index not in report.bad_images]
    random.Random(seed).shuffle(images)
    number = defaultdict(int)
    for image in images:
        for name in classes[image.id]:
            number[name] += 1
    chosen, shown = [], set()
    for name in sorted(number, key=number.get):
        if name not in shown and len(chosen) < count:
            image = next(image for image in images if name in classes[image.id])
            chosen.append(image)
            shown |= classes[image.id]
    rest = [image for image in images if image not in chosen]
    return chosen + rest[: count - len(chosen)]


def _extremes(report: Report) -> list[tuple[str, ImageEntry]]:
    """Images where mistakes of labelling are likely, and why."""
    images = {image.id: image for image in report.images}
    boxes = [annotation for annotation in report.annotations if not annotation.iscrowd]
    if not boxes:
        return []
    of_image = _by_image(boxes)

    def area(box: Annotation) -> float:
        return box.bbox[2] * box.bbox[3]

    def share(box: Annotation) -> float:
        facts = report.facts[images[box.image_id].index]
        return area(box) / (facts.width * facts.height)

    smallest, largest = min(boxes, key=area), max(boxes, key=share)
    longest = max(boxes, key=lambda box: max(box.bbox[2:]) / min(box.bbox[2:]))
    most = max(of_image, key=lambda id: len(of_image[id]))
    return [
        (f'most boxes: {len(of_image[most])}', images[most]),
        (f'smallest box: {smallest.bbox[2]:.3g} x {smallest.bbox[3]:.3g} px', images[smallest.image_id]),
        (f'largest box: {share(largest):.0%} of the image', images[largest.image_id]),
        (f'longest box: {longest.bbox[2]:.3g} x {longest.bbox[3]:.3g} px', images[longest.image_id]),
    ]


def _pictures(split: str, report: Report, colours: dict[int, tuple[str, tuple]], seed: int) -> str:
    of_image = _by_image(report.annotations)
    parts = [(f'{split}: samples', [('', image) for image in choose(report, SAMPLES[split], seed)])]
    if split == 'train':
        parts.insert(0, ('train: where to look for mistakes', _extremes(report)))
    sections = []
    for title, images in parts:
        figures = ''.join(_figure(why, image, of_image[image.id], report, colours) for why, image in images)
        sections.append(f'<h2>{title}</h2>\n<div class="pictures">{figures}</div>\n' if figures else '')
    return ''.join(sections)


def _figure(
    why: str, image: ImageEntry, boxes: Sequence[Annotation], report: Report, colours: dict[int, tuple[str, tuple]]
) -> str:
    try:
        pixels = read_image(report.image_dir / image.file_name)
    except DataError as error:
        return f'<figure><figcaption>{text(error)}</figcaption></figure>'
    scale = min(1, MAX_SIDE / max(pixels.shape[:2]))
    pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    corners = np.array([box.bbox for box in boxes], float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    ids = list(colours)
    names, palette_of_names = zip(*colours.values()) if colours else ((), ())
    labels = [ids.index(box.category_id) for box in boxes]
    drawn = draw_boxes(pixels, corners * scale, labels, names, palette_of_names)
    count = '1 box' if len(boxes) == 1 else f'{len(boxes)} boxes'
    why = f'<b>{text(why)}</b>' if why else ''
    name = text(image.file_name)
    caption = f'<figcaption>{why}{name} <span class="soft">{count}</span></figcaption>'
    picture = f'<img src="{image_uri(drawn[..., ::-1])}" alt="{name} with {count}">'
    return f'<figure>{picture}{caption}</figure>\n'


def _by_image(annotations: Iterable[Annotation]) -> dict[int, list[Annotation]]:
    found = defaultdict(list)
    for annotation in annotations:
        found[annotation.image_id].append(annotation)
    return found


def _colours(report: Report) -> dict[int, tuple[str, tuple]]:
    """Name and colour of each category id."""
    categories = {category.id: printable(category.name) for category in report.categories}
    return {id: (name, colour) for (id, name), colour in zip(categories.items(), palette(len(categories)))}
