"""Pictures for the report: parts of images, with boxes and names as text on them that is sharp at any size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..datasets import DataError, read_image
from ..explain.page import image_uri
from .page import text
from .pictures import shrunk

QUALITY = 82  # of JPEG
PART_SIDE, WHOLE_SIDE = 400, 640  # px of the longer side on the page
AROUND = 3  # a part of an image is so many times as wide as its box
LEAST = 120  # px, and at least as wide as this
LEAST_SHARE = 0.25  # of the image's longer side
SHAPE = 4 / 3  # of a part: width / height
TEXT = 0.046, 0.034  # height of letters, of the width of a part of that shape, and of a whole image
MAX_NAME = 28  # characters


@dataclass
class Mark:
    """A box on a picture.

    Attributes:
        box: (x, y, width, height) in px of the image.
        kind: 'right', 'wrong' or 'missed'.
        name: of its class, perhaps with a score.
        named: whether the name stands at it, or only shows when it is pointed at.
        faint: whether it is only there for orientation.
    """

    box: Sequence[float]
    kind: str
    name: str
    named: bool = True
    faint: bool = False


def picture(path: Path, marks: Sequence[Mark], caption: str, around: Sequence[float] | None = None) -> str:
    """A figure of an image, or of a part of it.

    Args:
        path: of the image.
        marks: those that matter most last.
        caption: HTML.
        around: a box; the part of the image around it is shown. None: all of it.
    """
    try:
        pixels = read_image(path)
    except (DataError, OSError) as error:
        return f'<figure><figcaption>{caption}<div>{text(error)}</div></figcaption></figure>\n'
    height, width = pixels.shape[:2]
    x, y, w, h = (0, 0, width, height) if around is None else part_of(width, height, around)
    pixels = shrunk(pixels[y : y + h, x : x + w], WHOLE_SIDE if around is None else PART_SIDE)
    seen = [mark for mark in marks if _overlaps(mark.box, (x, y, w, h))]
    drawn = ''.join(_rectangle(mark) for mark in seen)
    size = TEXT[around is None] * max(w, SHAPE * h)
    names = ''.join(_name(mark, (x, y, w, h), size) for mark in seen if mark.named)
    image = f'<image href="{image_uri(pixels[..., ::-1], QUALITY)}" x="{x}" y="{y}" width="{w}" height="{h}"/>'
    label = text(', '.join(mark.name for mark in seen if not mark.faint) or path.name)
    svg = f'<svg viewBox="{x} {y} {w} {h}" role="img" aria-label="{label}">{image}{drawn}{names}</svg>'
    return f'<figure>{svg}<figcaption>{caption}</figcaption></figure>\n'


def part_of(width: int, height: int, box: Sequence[float]) -> tuple[int, int, int, int]:
    """(x, y, width, height) of the part of an image around a box, all of it inside the image."""
    x, y, w, h = box
    wide = max(AROUND * w, AROUND * h * SHAPE, LEAST, LEAST_SHARE * max(width, height))
    w_part, h_part = (min(max(round(side), 1), limit) for side, limit in ((wide, width), (wide / SHAPE, height)))
    left, top = x + w / 2 - w_part / 2, y + h / 2 - h_part / 2
    return (
        int(np.clip(round(left), 0, width - w_part)),
        int(np.clip(round(top), 0, height - h_part)),
        w_part,
        h_part,
    )


def _overlaps(box: Sequence[float], part: Sequence[float]) -> bool:
    return all(box[i] < part[i] + part[i + 2] and part[i] < box[i] + box[i + 2] for i in (0, 1))


def _rectangle(mark: Mark) -> str:
    x, y, w, h = (f'{value:.1f}' for value in mark.box)
    place = f'x="{x}" y="{y}" width="{w}" height="{h}"'
    title = f'<title>{text(mark.name)}</title>'
    if mark.faint:
        return f'<rect class="{mark.kind} faint" {place}>{title}</rect>'
    return f'<rect class="under" {place}/><rect class="{mark.kind}" {place}>{title}</rect>'


def _name(mark: Mark, part: Sequence[float], size: float) -> str:
    """Above its box, or inside where there is no room."""
    name = mark.name if len(mark.name) <= MAX_NAME else f'{mark.name[: MAX_NAME - 1]}…'
    x, y = max(mark.box[0], part[0]), mark.box[1] - 0.35 * size
    if y - size < part[1]:
        y = max(mark.box[1], part[1]) + 1.1 * size
    y = min(y, part[1] + part[3] - 0.3 * size)
    width = 0.58 * size * len(name)  # about
    x = max(min(x, part[0] + part[2] - width), part[0] + 0.2 * size)
    return f'<text class="{mark.kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}">{text(name)}</text>'
