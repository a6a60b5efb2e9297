"""Write a copy of annotations without what ``check_coco`` found to be bad."""

from pathlib import Path

from .check import check_coco
from .coco_folder import LISTS, write_coco
from .errors import DataError
from .records import is_segmentation, without_deep
from .report import Report


def clean_coco(report: Report, out_file: str | Path) -> Report:
    """Leave out the bad images and annotations, fill the gaps and write the rest to ``out_file``.

    Filled are: missing width and height (from the image file), area (width x height), iscrowd (0), annotation ids that
    are missing, 0 or given twice (all are numbered anew from 1), and the order of the categories (by id). Numbers that
    are written as decimals or text become integers, names of categories get one line, and names of images that were
    found elsewhere are those of the files. Left out are categories that
    only stand above others, masks that are none, and whatever is nested deeper than any reader goes. The original file
    stays as it is.

    Args:
        report: of ``check_coco``.
        out_file: the copy.

    Returns:
        The report about the copy.

    Raises:
        DataError: errors are left that no omission heals, such as a category id given twice.
    """
    images = [
        {
            **without_deep(report.coco['images'][image.index]),
            'id': image.id,
            'file_name': image.file_name,
            'width': report.facts[image.index].width,
            'height': report.facts[image.index].height,
        }
        for image in report.images
        if image.index not in report.bad_images
    ]
    annotations = []
    for annotation in report.annotations:
        entry = report.coco['annotations'][annotation.index]
        segmentation = entry.get('segmentation')
        if segmentation and not is_segmentation(segmentation):
            entry = {key: value for key, value in entry.items() if key != 'segmentation'}
        area = annotation.bbox[2] * annotation.bbox[3] if annotation.area is None else entry['area']
        annotations.append(
            {
                **without_deep(entry),
                'id': len(annotations) + 1,
                'image_id': annotation.image_id,
                'category_id': annotation.category_id,
                'iscrowd': annotation.iscrowd,
                'area': area,
            }
        )
    categories = [
        {**without_deep(report.coco['categories'][category.index]), 'id': category.id, 'name': category.name}
        for category in sorted(report.categories, key=lambda category: category.id)
        if category.id not in report.merged and category.id not in report.dropped
    ]
    read = {category.index for category in report.categories}
    categories += [without_deep(entry) for index, entry in enumerate(report.coco['categories']) if index not in read]
    rest = without_deep({key: value for key, value in report.coco.items() if key not in LISTS})
    out_file = Path(out_file)
    write_coco(out_file, {**rest, 'images': images, 'annotations': annotations, 'categories': categories})
    facts = {image.file_name: report.facts[image.index] for image in report.images if image.index in report.facts}
    cleaned = check_coco(out_file, report.image_dir, facts=facts, title=report.title)
    if cleaned.errors:
        raise DataError(f'{report.ann_file} has errors that leaving out images or boxes does not heal\n{cleaned}')
    return cleaned
