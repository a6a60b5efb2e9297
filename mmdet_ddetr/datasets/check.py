"""Check annotations in COCO format before anything is trained on them."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from .coco_folder import Fault, is_plain_utf8, read_coco
from .image_file import MAX_ASPECT, ImageFacts, inspect_images
from .parse import read_annotations, read_categories, read_images, read_rest
from .report import Finding, Report, printable, shown

EDGE_TOLERANCE = 1.0  # px that a box may stick out unmentioned: rounding
COCO_DETECTIONS = 100  # the COCO metric looks at no more in an image


def check_coco(
    ann_file: str | Path,
    image_dir: str | Path,
    num_queries: int | None = None,
    decode: bool = False,
    facts: Mapping[str, ImageFacts] | None = None,
    faults: Iterable[Fault] = (),
    title: str = '',
    boxed: Collection[int] = (),
) -> Report:
    """Check one annotation file and its images.

    Args:
        ann_file: annotations in COCO format.
        image_dir: folder that the file names are relative to.
        num_queries: boxes that the model can find in an image; None: not compared.
        decode: decode every image instead of reading its header and end only.
        facts: what is known of images by their file name, which are not read again.
        faults: what was found before, while another format was read.
        title: what the report calls the file; '': its path.
        boxed: ids of categories that have boxes in other splits.

    Returns:
        The findings. Whether a fault is an error, a warning or a note is decided by what it does to training and
        evaluation: an error crashes them, falsifies them, or is left out of one of them without a word.

    Raises:
        DataError: the file is missing, is no JSON or has not the structure of COCO.
    """
    ann_file, image_dir = Path(ann_file), Path(image_dir)
    report = Report(ann_file, image_dir, read_coco(ann_file), title=title)
    for fault in faults:
        report.add(*fault)
    if not is_plain_utf8(ann_file):
        report.repair('note', 'not in plain UTF-8', remedy='so written in a copy')
    read_categories(report)
    read_images(report)
    read_rest(report)
    _check_image_files(report, decode, facts or {})
    read_annotations(report)
    _check_categories(report, boxed)
    _check_annotations(report)
    _check_amounts(report, num_queries)
    return report


def check_splits(reports: dict[str, Report]) -> list[Finding]:
    """What single files do not tell: whether splits differ in categories, share images, or have nothing but crowds.

    Args:
        reports: of each split, by its name; 'train' is the one that the others are compared with.
    """
    findings = []
    categories = _names_of_classes(reports['train'])
    for name, report in reports.items():
        if name == 'train':
            continue
        other = _names_of_classes(report)
        if other != categories:
            differing = sorted({*categories.items()} ^ {*other.items()}, key=lambda item: item[0])
            places = [
                f'id {id}: {categories.get(id, "nothing")!r} in train, {other.get(id, "nothing")!r} in {name}'
                for id in dict.fromkeys(id for id, _ in differing)
            ]
            findings.append(Finding('error', f'train and {name} disagree on the categories', places=places))
    for name, report in reports.items():
        if report.annotations and all(annotation.iscrowd for annotation in report.annotations):
            level = 'error' if name == 'train' else 'warning'
            places = [f'{name}: {len(report.annotations)} boxes, all with iscrowd 1 (of Pascal VOC: difficult)']
            findings.append(Finding(level, f'{name} has no box that is not a crowd', places=places))
    first_seen = {}
    shared = defaultdict(list)
    for name, report in reports.items():
        for image in report.images:
            if image.index not in report.facts:
                continue
            file_name = printable(image.file_name)
            other, other_file = first_seen.setdefault(report.facts[image.index].digest, (name, file_name))
            if other != name:
                shared[other, name].append(file_name if file_name == other_file else f'{other_file} = {file_name}')
    for (one, other), places in shared.items():
        findings.append(
            Finding('warning', f'{one} and {other} share images: {other} AP will look better than it is', places=places)
        )
    return findings


def drop_unused_groups(reports: dict[str, Report]) -> None:
    """Mark the categories that only stand above others, and have no box in any split, to be left out of the copies."""
    unused = [set(report.unused_groups.items()) for report in reports.values()]
    for group in set.intersection(*unused):
        for report in reports.values():
            report.dropped.add(group[0])
            report.repair(
                'note', 'category that others have as their supercategory, without a box in any split',
                f'id {group[0]}, {group[1]!r}', 'left out in a copy',
            )  # fmt: skip


def _names_of_classes(report: Report) -> dict[int, str]:
    gone = {*report.merged, *report.dropped}
    return {category.id: category.name for category in report.categories if category.id not in gone}


def _check_categories(report: Report, elsewhere: Collection[int]) -> None:
    """Names and ids given twice, and categories that only stand above others.

    Some exports have the supercategory of all classes as a category, too: without a box, and now and then under the
    name of a class.
    """
    report.boxed = {annotation.category_id for annotation in report.annotations}
    by_name = defaultdict(list)
    for category in report.categories:
        by_name[category.name].append(category)
    groups = {category.group for category in report.categories}
    for name, same in by_name.items():
        above = [category for category in same if name in groups and category.group != name]
        members = [category for category in same if category not in above]
        boxed = [category for category in same if category.id in report.boxed]
        if len(same) == 1:
            if above and not boxed:
                report.unused_groups[same[0].id] = name
        elif above and len(members) == 1:
            report.merged.update({category.id: members[0].id for category in above})
            ids = ', '.join(str(category.id) for category in above)
            report.repair(
                'note',
                'category with the name of a class that has it as its supercategory',
                f'{name!r}: id {ids}, the class is id {members[0].id}',
                'one class in a copy',
            )
        elif len(boxed := [category for category in same if category.id in report.boxed.union(elsewhere)]) == 1:
            unused = [category.id for category in same if category not in boxed]
            report.dropped.update(unused)
            place = f'{name!r}: id {", ".join(map(str, unused))}, the one with boxes is id {boxed[0].id}'
            report.repair('note', 'category without a box that has the name of another', place, 'left out in a copy')
        else:
            report.add('error', 'category name given twice', f'name {name!r}, {len(same)} times')
    for id, count in Counter(category.id for category in report.categories).items():
        if count > 1:
            report.add('error', 'category id given twice', f'id {id}, {count} times')
    for annotation in report.annotations:
        annotation.category_id = report.merged.get(annotation.category_id, annotation.category_id)


def _check_image_files(report: Report, decode: bool, known: dict[str, ImageFacts]) -> None:
    """What the files themselves say."""
    entries = [image for image in report.images if image.index not in report.bad_images]
    unknown = [image.file_name for image in entries if image.file_name not in known]
    found = inspect_images([report.image_dir / name for name in unknown], decode)
    known = {**known, **dict(zip(unknown, found))}
    files = defaultdict(list)
    for image in entries:
        facts = known[image.file_name]
        place = f'{image.place} ({report.image_dir / image.file_name})'
        if isinstance(facts, str):
            report.bad_images.add(image.index)
            report.add('error', 'image that does not load', f'{place}: {facts}')
            continue
        report.facts[image.index] = facts
        files[facts.digest].append(image)
        if max(facts.width, facts.height) > MAX_ASPECT * min(facts.width, facts.height):
            report.bad_images.add(image.index)
            rule = f'image more than {MAX_ASPECT} times as long as wide: resized, its short side is nothing'
            report.add('error', rule, f'{place}: {facts.width}x{facts.height}')
        elif image.width is None or image.height is None:
            report.repair('warning', 'image without width or height', place, 'taken from the file, in a copy')
        elif (image.width, image.height) != (facts.width, facts.height):
            report.bad_images.add(image.index)
            entry = report.coco['images'][image.index]
            turned = ', turned by its EXIF orientation' if facts.rotated else ''
            was = f'recorded as {shown(entry["width"])}x{shown(entry["height"])}'
            report.add(
                'error',
                "width and height are not the file's: its boxes are misplaced",
                f'{place}: {was}, the file is {facts.width}x{facts.height}{turned}',
            )
        elif not image.whole:
            report.repair('note', 'width or height is not written as an integer', place, 'so written in a copy')
    for same in files.values():
        if len(same) > 1:
            names = ', '.join(f'{image.place} ({image.file_name})' for image in same)
            report.add('warning', 'the same picture more than once', names)


def _check_annotations(report: Report) -> None:
    """Where the boxes lie, and what the metric mistakes."""
    entries = {image.id: image for image in reversed(report.images)}  # the first of each id
    seen, boxes = set(), set()
    sound = []
    for annotation in report.annotations:
        image = entries[annotation.image_id]
        facts = report.facts[image.index]
        fault, level, remedy = _fault_of_box(annotation.bbox, facts)
        if fault:
            place = f'{annotation.place} ({image.file_name}): bbox {_numbers(annotation.bbox)}'
            report.add(level, fault, f'{place}, image {facts.width}x{facts.height}', remedy)
        if level == 'error':
            report.bad_annotations.add(annotation.index)
            continue
        sound.append(annotation)
        # the COCO metric marks a matched box by its id, so that one with id 0 always counts as missed
        if not annotation.id or annotation.id in seen:
            rule = 'annotation id missing, no integer, 0 or given twice'
            report.repair('warning', rule, annotation.place, 'numbered anew in a copy')
        seen.add(annotation.id)
        box = annotation.image_id, annotation.category_id, annotation.bbox
        if box in boxes:
            report.add('warning', 'the same box twice', f'{annotation.place} ({image.file_name})')
        boxes.add(box)
    report.annotations = sound


def _fault_of_box(bbox: tuple[float, ...], facts: ImageFacts) -> tuple[str, str, str]:
    """The rule that a box breaks, its level and its remedy, or empty texts."""
    x, y, w, h = bbox
    if x >= facts.width or y >= facts.height or x + w <= 0 or y + h <= 0:
        return 'bbox outside the image', 'error', ''
    if w < 1 or h < 1:
        return 'bbox thinner than 1 px: mmdet leaves it out of training but not of evaluation', 'error', ''
    if max(-x, -y, x + w - facts.width, y + h - facts.height) > EDGE_TOLERANCE:
        return 'bbox sticks out of the image', 'warning', 'training clips it'
    return '', '', ''


def _numbers(bbox: tuple[float, ...]) -> str:
    return f'[{", ".join(f"{value:.10g}" for value in bbox)}]'


def _check_amounts(report: Report, num_queries: int | None) -> None:
    if not report.coco['annotations']:
        report.add('error', 'no annotations')
    elif not report.annotations:
        report.add('error', 'every annotation has an error, or its image has one')
    per_image = Counter(annotation.image_id for annotation in report.annotations if not annotation.iscrowd)
    report.max_boxes = max(per_image.values(), default=0)
    with_boxes = {annotation.image_id for annotation in report.annotations}
    for image in report.images:
        if image.index not in report.bad_images and image.id not in with_boxes:
            report.add('note', 'image without boxes', image.labelled_in)
    used = {annotation.category_id for annotation in report.annotations}
    gone = {*report.merged, *report.dropped, *report.unused_groups}
    for category in report.categories:
        if report.annotations and category.id not in used and category.id not in gone:
            report.add('warning', 'category without a box', f'id {category.id}, {category.name!r}')
    places = {image.id: image.place for image in report.images}
    remedies = defaultdict(list)
    if num_queries:
        remedies[num_queries].append('the model finds no more: raise model.num_queries and model.test_cfg.max_per_img')
    remedies[COCO_DETECTIONS].append("COCO's AP counts no more detections of an image")
    for limit, remedy in remedies.items():
        for image_id, count in per_image.most_common():
            if count > limit:
                rule = f'image with more boxes than {limit}'
                report.add('warning', rule, f'{places[image_id]}: {count}', '; '.join(remedy))
