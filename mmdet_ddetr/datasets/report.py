"""What a check finds, and how it is told."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .image_file import ImageFacts
from .records import Annotation, Category, ImageEntry

EXAMPLES = 3
LEVELS = ('error', 'warning', 'note')
MAX_SHOWN = 160  # characters of a value in a message
# control characters, halves of surrogate pairs, and what reorders or hides text
UNPRINTABLE = re.compile('[\x00-\x1f\x7f-\xa0\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]')


@dataclass
class Finding:
    """One kind of fault in one annotation file."""

    level: str  # error: refuses training; warning: worth a look; note: for information
    rule: str
    remedy: str = ''  # what will be or can be done about it
    places: list[str] = field(default_factory=list)  # where, in words


@dataclass
class Report:
    """What ``check_coco`` found.

    ``categories``, ``images`` and ``annotations`` are the entries of the file whose types are right; ``bad_images`` and
    ``bad_annotations`` are positions in the file's lists: what must go for the rest to be sound. ``merged`` and
    ``dropped`` are ids of categories that ``clean_coco`` leaves out; the boxes of the former go to another category.
    ``boxed`` is ids of categories that have boxes. ``repairs`` says whether there are harmless gaps that ``clean_coco``
    fills.
    """

    ann_file: Path
    image_dir: Path
    coco: dict
    findings: list[Finding] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)
    images: list[ImageEntry] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    bad_images: set[int] = field(default_factory=set)
    bad_annotations: set[int] = field(default_factory=set)
    merged: dict[int, int] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    boxed: set[int] = field(default_factory=set)
    unused_groups: dict[int, str] = field(default_factory=dict)  # names of categories that only stand above others
    repairs: bool = False
    facts: dict[int, ImageFacts] = field(default_factory=dict)  # of the images that are sound, by position
    max_boxes: int = 0  # in one image, crowds not counted
    title: str = ''  # what it is called; '': the annotation file's path

    def __post_init__(self):
        self._by_rule = defaultdict(lambda: None)

    def add(self, level: str, rule: str, place: str = '', remedy: str = '') -> None:
        """Note a fault; ``place`` may hold anything that the file does."""
        finding = self._by_rule[level, rule]
        if finding is None:
            finding = self._by_rule[level, rule] = Finding(level, rule, remedy)
            self.findings.append(finding)
        finding.places.append(printable(place))

    def repair(self, level: str, rule: str, place: str = '', remedy: str = '') -> None:
        """Note a gap that has one sensible filling, which the copy will have."""
        self.repairs = True
        self.add(level, rule, place, remedy)

    def of_level(self, level: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == level]

    @property
    def errors(self) -> list[Finding]:
        return self.of_level('error')

    @property
    def warnings(self) -> list[Finding]:
        return self.of_level('warning')

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the file's order, which is the order in which mmdet numbers the labels."""
        return tuple(category.name for category in self.categories)

    def __str__(self) -> str:
        counts = [
            counted(len(self.coco['images']), 'image'),
            counted(len(self.coco['annotations']), 'box', 'boxes'),
            counted(len(self.coco['categories']), 'category', 'categories'),
            f'at most {counted(self.max_boxes, "box", "boxes")} in an image',
        ]
        lines = [f'{printable(self.title or self.ann_file)}: {", ".join(counts)}']
        for finding in sorted(self.findings, key=lambda finding: LEVELS.index(finding.level)):
            remedy = f' ({finding.remedy})' if finding.remedy else ''
            lines.append(f'  {finding.level:7}  {len(finding.places):6} x {finding.rule}{remedy}')
            places = [place for place in finding.places if place]
            lines += [f'{"":20}{place}' for place in places[:EXAMPLES]]
            if len(places) > EXAMPLES:
                lines.append(f'{"":20}... and {len(places) - EXAMPLES} more')
        return '\n'.join(lines)


def counted(number: int, one: str, many: str | None = None) -> str:
    """'1 image', '2 images'."""
    return f'{number} {one if number == 1 else many or one + "s"}'


def printable(value, limit: int | None = None) -> str:
    """``value`` as text in one line that every terminal and file takes."""
    text = UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], str(value))
    return text if limit is None or len(text) <= limit else f'{text[: limit - 3]}...'


def shown(value) -> str:
    """A value of the file, as in Python's notation, cut where it is long."""
    try:
        return printable(repr(value), MAX_SHOWN)
    except RecursionError:
        return f'a {type(value).__name__} that is nested too deeply to be shown'
