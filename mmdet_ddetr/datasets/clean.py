"""Write a copy of annotations without what ``check_coco`` found to be bad."""

import json
from pathlib import Path

from .check import Report, check_coco
from .errors import DataError


def clean_coco(report: Report, out_file: str | Path) -> Report:
    """Leave out the bad images and annotations, fill the gaps and write the rest to ``out_file``.

    Filled are: missing width and height (from the image file), area (width x height), iscrowd (0), annotation ids that
    are missing, 0 or given twice (all are numbered anew from 1), and the order of the categories (by id). The original
    file stays as it is.

    Args:
        report: of ``check_coco``.
        out_file: the copy.

    Returns:
        The report about the copy.

    Raises:
        DataError: errors are left that no omission heals, such as a category id given twice.
    """
    coco = report.coco
    images = [
        {'width': report.facts[index].width, 'height': report.facts[index].height, **image}
        for index, image in enumerate(coco['images'])
        if index not in report.bad_images
    ]
    annotations = []
    for index, annotation in enumerate(coco['annotations']):
        if index in report.bad_annotations:
            continue
        annotation = {'iscrowd': 0, **annotation, 'id': len(annotations) + 1}
        if not annotation.get('area', 0) > 0:
            annotation['area'] = annotation['bbox'][2] * annotation['bbox'][3]
        annotations.append(annotation)
    try:
        categories = sorted(coco['categories'], key=lambda category: category['id'])
    except (KeyError, TypeError):
        categories = coco['categories']  # faulty, as the report about the copy will say
    out_file = Path(out_file)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    out_file.write_text(json.dumps({**coco, 'images': images, 'annotations': annotations, 'categories': categories}))
    cleaned = check_coco(out_file, report.image_dir)
    if cleaned.errors:
        raise DataError(f'{report.ann_file} has errors that leaving out images or boxes does not heal\n{cleaned}')
    return cleaned
