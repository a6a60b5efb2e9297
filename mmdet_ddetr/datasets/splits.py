"""Take a part of the train images as the val split."""

import random
from dataclasses import replace
from pathlib import Path

from .coco_folder import CocoSplit, read_coco, write_coco
from .errors import DataError
from .records import identifier


def split_off_val(train: CocoSplit, fraction: float, out_dir: str | Path, seed: int = 0) -> tuple[CocoSplit, CocoSplit]:
    """Take a part of the train images as the val split.

    Args:
        train: what is split.
        fraction: share of the images to put into val, in (0, 1); at least one image goes to each side.
        out_dir: folder that ``train.json`` and ``val.json`` are written to; the images stay where they are.
        seed: which images are drawn.

    Returns:
        The new train split and the val split.

    Raises:
        DataError: the fraction is none, or the file has fewer than two images.
    """
    if not 0 < fraction < 1:
        raise DataError(f'--val-fraction is {fraction}, expected a number between 0 and 1')
    coco = read_coco(train.ann_file)
    images = coco['images']
    if len(images) < 2:
        raise DataError(f'{train.title or train.ann_file} has {len(images)} image(s), too few to split off a val split')
    order = random.Random(seed).sample(range(len(images)), len(images))
    n_val = min(max(round(fraction * len(images)), 1), len(images) - 1)
    parts = dict(train=sorted(order[n_val:]), val=sorted(order[:n_val]))
    splits = {}
    for name, chosen in parts.items():
        part = [images[index] for index in chosen]
        ids = {identifier(image.get('id')) for image in part}  # None, too: the check will complain
        annotations = [entry for entry in coco['annotations'] if identifier(entry.get('image_id')) in ids]
        ann_file = Path(out_dir, f'{name}.json')
        write_coco(ann_file, {**coco, 'images': part, 'annotations': annotations})
        title = f'{train.title or train.ann_file}, {len(part)} of its {len(images)} images as {name}'
        splits[name] = replace(train, name=name, ann_file=ann_file, title=title)
    return splits['train'], replace(splits['val'], faults=())
