"""Check annotations in COCO format before anything is trained on them."""

import math
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

from .coco_folder import read_coco
from .errors import DataError
from .image_file import ImageFacts, inspect_image

MAX_ID = 2**53 - 1  # COCO's evaluation keeps ids in float64
EDGE_TOLERANCE = 1.0  # px that a box may stick out unmentioned: rounding
COCO_DETECTIONS = 100  # the COCO metric looks at no more in an image
EXAMPLES = 3
LEVELS = ('error', 'warning', 'note')


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

    ``bad_images`` and ``bad_annotations`` are positions in the file's lists: what must go for the rest to be sound.
    ``repairs`` says whether there are harmless gaps that ``clean_coco`` fills.
    """

    ann_file: Path
    image_dir: Path
    coco: dict
    findings: list[Finding] = field(default_factory=list)
    bad_images: set[int] = field(default_factory=set)
    bad_annotations: set[int] = field(default_factory=set)
    repairs: bool = False
    facts: dict[int, ImageFacts] = field(default_factory=dict)  # of the images that are sound, by position
    max_boxes: int = 0  # in one image, crowds not counted

    def add(self, level: str, rule: str, place: str = '', remedy: str = '') -> None:
        for finding in self.findings:
            if (finding.level, finding.rule) == (level, rule):
                break
        else:
            finding = Finding(level, rule, remedy)
            self.findings.append(finding)
        finding.places.append(place)

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
        return tuple(category['name'] for category in self.coco['categories'])

    def __str__(self) -> str:
        counts = (
            f'{len(self.coco["images"])} images, {len(self.coco["annotations"])} boxes, '
            f'{len(self.coco["categories"])} categories, at most {self.max_boxes} boxes in an image'
        )
        lines = [f'{self.ann_file}: {counts}']
        for finding in sorted(self.findings, key=lambda finding: LEVELS.index(finding.level)):
            remedy = f' ({finding.remedy})' if finding.remedy else ''
            lines.append(f'  {finding.level:7}  {len(finding.places):6} x {finding.rule}{remedy}')
            places = [place for place in finding.places if place]
            lines += [f'{"":20}{place}' for place in places[:EXAMPLES]]
            if len(places) > EXAMPLES:
                lines.append(f'{"":20}... and {len(places) - EXAMPLES} more')
        return '\n'.join(lines)


def check_coco(
    ann_file: str | Path, image_dir: str | Path, num_queries: int | None = None, decode: bool = False
) -> Report:
    """Check one annotation file and its images.

    Args:
        ann_file: annotations in COCO format.
        image_dir: folder that the file names are relative to.
        num_queries: boxes that the model can find in an image; None: not compared.
        decode: decode every image instead of reading its header and end only.

    Returns:
        The findings. Whether a fault is an error, a warning or a note is decided by what it does to training and
        evaluation: an error crashes them, falsifies them, or is left out of one of them without a word.

    Raises:
        DataError: the file is missing, is no JSON or has not the structure of COCO.
    """
    ann_file, image_dir = Path(ann_file), Path(image_dir)
    report = Report(ann_file, image_dir, read_coco(ann_file))
    _check_categories(report)
    _check_image_entries(report)
    _check_image_files(report, decode)
    _check_annotations(report)
    _check_amounts(report, num_queries)
    return report


def check_splits(reports: dict[str, Report]) -> list[Finding]:
    """Compare the splits of one data set: their categories and whether they share images.

    Args:
        reports: of each split, by its name; 'train' is the one that the others are compared with.
    """
    findings = []
    train = reports['train']
    categories = {category['id']: category['name'] for category in _sound_categories(train)}
    for name, report in reports.items():
        if name == 'train':
            continue
        other = {category['id']: category['name'] for category in _sound_categories(report)}
        if other != categories:
            differing = sorted(
                {*categories.items(), *other.items()} - ({*categories.items()} & {*other.items()}),
                key=lambda item: item[0],
            )
            places = [
                f'id {id}: {categories.get(id, "nothing")!r} in train, {other.get(id, "nothing")!r} in {name}'
                for id in dict.fromkeys(id for id, _ in differing)
            ]
            findings.append(Finding('error', f'train and {name} disagree on the categories', places=places))
    first_seen = {}
    shared = defaultdict(list)
    for name, report in reports.items():
        for index, facts in report.facts.items():
            file_name = report.coco['images'][index]['file_name']
            other, other_file = first_seen.setdefault(facts.digest, (name, file_name))
            if other != name:
                shared[other, name].append(file_name if file_name == other_file else f'{other_file} = {file_name}')
    for (one, other), places in shared.items():
        findings.append(Finding('warning', f'{one} and {other} share images: {other} AP says too much', places=places))
    return findings


def _sound_categories(report: Report) -> list[dict]:
    return [category for category in report.coco['categories'] if 'id' in category and 'name' in category]


def _is_id(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def _check_categories(report: Report) -> None:
    categories = report.coco['categories']
    if not categories:
        report.add('error', 'no categories')
    for index, category in enumerate(categories):
        if not _is_id(category.get('id')):
            report.add('error', f'category id is not an integer in 0..{MAX_ID}', f'categories[{index}]: {category}')
        if not isinstance(category.get('name'), str) or not category['name']:
            report.add('error', 'category without a name', f'categories[{index}]: {category}')
    for key in ('id', 'name'):
        for value, count in Counter(repr(category.get(key)) for category in categories).items():
            if count > 1:
                report.add('error', f'category {key} given twice', f'{key} {value}, {count} times')
    ids = sorted(category['id'] for category in categories if _is_id(category.get('id')))
    if ids and ids != list(range(ids[0], ids[0] + len(ids))):
        report.add(
            'note', 'category ids have gaps, which is fine: labels count the categories, not the ids', str(ids)[:80]
        )
    if ids and ids != [category.get('id') for category in categories]:
        report.repairs = True
        report.add('note', 'categories are not sorted by id', remedy='sorted in a copy: labels follow the file order')


def _check_image_entries(report: Report) -> None:
    """What the file says about its images."""
    positions = defaultdict(list)
    for index, image in enumerate(report.coco['images']):
        place = f'images[{index}]: {image}'[:160]
        if not _is_id(image.get('id')):
            report.bad_images.add(index)
            report.add('error', f'image id is not an integer in 0..{MAX_ID}', place)
            continue
        if not isinstance(image.get('file_name'), str) or not image['file_name']:
            report.bad_images.add(index)
            report.add('error', 'image without file_name', place)
        positions[image['id']].append(index)
    for image_id, indices in positions.items():
        if len(indices) > 1:
            names = [str(report.coco['images'][index].get('file_name')) for index in indices]
            # where all mean one file, the first stays; else nobody knows whose the boxes are
            report.bad_images.update(indices[1:] if len(set(names)) == 1 else indices)
            report.add('error', 'image id given twice', f'id {image_id}: {", ".join(names)}')
    if not report.coco['images']:
        report.add('error', 'no images')


def _check_image_files(report: Report, decode: bool) -> None:
    """What the files themselves say."""
    images = report.coco['images']
    indices = [index for index in range(len(images)) if index not in report.bad_images]

    def inspect(index: int) -> ImageFacts | str:
        try:
            return inspect_image(report.image_dir / images[index]['file_name'], decode)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(inspect, indices))
    files = defaultdict(list)
    for index, facts in zip(indices, outcomes):
        image = images[index]
        place = f'image {image["id"]} ({report.image_dir / image["file_name"]})'
        if isinstance(facts, str):
            report.bad_images.add(index)
            report.add('error', 'image that does not load', f'{place}: {facts}')
            continue
        report.facts[index] = facts
        files[facts.digest].append(image)
        recorded = image.get('width'), image.get('height')
        if None in recorded:
            report.repairs = True
            report.add('warning', 'image without width or height', place, 'taken from the file, in a copy')
        elif recorded != (facts.width, facts.height):
            report.bad_images.add(index)
            turned = ', turned by its EXIF orientation' if facts.rotated else ''
            was = f'recorded as {recorded[0]}x{recorded[1]}, the file is {facts.width}x{facts.height}{turned}'
            report.add('error', "width and height are not the file's: its boxes are misplaced", f'{place}: {was}')
    for same in files.values():
        if len(same) > 1:
            names = ', '.join(f'{image["id"]} ({image["file_name"]})' for image in same)
            report.add('warning', 'the same picture more than once', f'images {names}')


def _check_annotations(report: Report) -> None:
    images = {}
    for index, image in enumerate(report.coco['images']):
        if _is_id(image.get('id')):
            images.setdefault(image['id'], index)
    categories = {category['id'] for category in report.coco['categories'] if _is_id(category.get('id'))}
    seen = set()
    for index, annotation in enumerate(report.coco['annotations']):
        image_id, category_id = annotation.get('image_id'), annotation.get('category_id')
        name = f' in image {image_id}' if 'image_id' in annotation else ''
        place = f'annotation {annotation.get("id", f"number {index}")}{name}'
        fault = None
        if missing := [key for key in ('image_id', 'category_id', 'bbox') if key not in annotation]:
            fault = f'annotation without {", ".join(missing)}', place
        elif not _is_id(image_id) or image_id not in images:
            fault = 'annotation of an image id that is not in images', place
        elif not _is_id(category_id) or category_id not in categories:
            known = f'{min(categories)}..{max(categories)}, {len(categories)} of them' if categories else 'none'
            fault = 'category_id that is not in categories', f'{place}: category_id {category_id!r}, known are {known}'
        elif 'id' in annotation and not _is_id(annotation['id']):
            fault = f'annotation id is not an integer in 0..{MAX_ID}', place
        else:
            image = report.coco['images'][images[image_id]]
            fault = _fault_of_box(report, annotation['bbox'], images[image_id], f'{place} ({image.get("file_name")})')
        if fault:
            report.bad_annotations.add(index)
            report.add('error', *fault)
            continue
        if images[image_id] in report.bad_images:
            report.bad_annotations.add(index)  # goes with its image, which has been reported
        _check_repairable(report, annotation, place, seen)


def _fault_of_box(report: Report, box, image_index: int, place: str) -> tuple[str, str] | None:
    """The rule that a box breaks and where, or None; what is merely odd becomes a warning of the report."""
    place = f'{place}: bbox {box}'
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, Real) for v in box):
        return 'bbox is not a list of four numbers [x, y, width, height]', place
    if not all(math.isfinite(v) for v in box):
        return 'bbox with a number that is not finite', place
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return 'bbox without an area', place
    facts = report.facts.get(image_index)
    if facts is None:
        return None  # its image does not load and has been reported
    place = f'{place}, image {facts.width}x{facts.height}'
    if x >= facts.width or y >= facts.height or x + w <= 0 or y + h <= 0:
        return 'bbox outside the image', place
    if w < 1 or h < 1:
        return 'bbox thinner than 1 px: mmdet leaves it out of training but not of evaluation', place
    overhang = max(-x, -y, x + w - facts.width, y + h - facts.height)
    if overhang > EDGE_TOLERANCE:
        report.add('warning', 'bbox sticks out of the image', place, 'training clips it')
    return None


def _check_repairable(report: Report, annotation: dict, place: str, seen: set[int]) -> None:
    """Gaps that have one sensible filling."""
    area = annotation.get('area')
    if not isinstance(area, Real) or not math.isfinite(area) or area <= 0:
        report.repairs = True
        report.add('warning', 'annotation without a positive area', place, 'width x height, in a copy')
    if 'iscrowd' not in annotation:
        report.repairs = True
        report.add('note', 'annotation without iscrowd', remedy='0, in a copy')
    # the COCO metric marks a matched box by its id, so that one with id 0 always counts as missed
    if not annotation.get('id') or annotation['id'] in seen:
        report.repairs = True
        report.add('warning', 'annotation id missing, 0 or given twice', place, 'numbered anew in a copy')
    else:
        seen.add(annotation['id'])


def _check_amounts(report: Report, num_queries: int | None) -> None:
    annotations = report.coco['annotations']
    good = [annotation for index, annotation in enumerate(annotations) if index not in report.bad_annotations]
    if not annotations:
        report.add('error', 'no annotations')
    elif not good:
        report.add('error', 'no sound annotation is left')
    per_image = Counter(annotation['image_id'] for annotation in good if not annotation.get('iscrowd'))
    report.max_boxes = max(per_image.values(), default=0)
    with_boxes = {annotation['image_id'] for annotation in good}
    for index, image in enumerate(report.coco['images']):
        if index not in report.bad_images and image['id'] not in with_boxes:
            report.add('note', 'image without boxes')
    used = {annotation['category_id'] for annotation in good}
    for category in report.coco['categories']:
        if good and category.get('id') not in used:
            report.add('warning', 'category without a box', f'id {category.get("id")}, {category.get("name")!r}')
    for limit, what in (
        (num_queries, 'the model finds at most {} boxes: raise model.num_queries and model.test_cfg.max_per_img'),
        (COCO_DETECTIONS, 'the COCO metric looks at {} detections: set proposal_nums of the evaluators'),
    ):
        for image_id, count in per_image.most_common() if limit else ():
            if count > limit:
                report.add(
                    'warning', f'image with more boxes than {limit}', f'image {image_id}: {count}', what.format(limit)
                )
