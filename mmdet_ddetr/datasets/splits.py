"""Take a part of the train images as the val split."""

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from .coco_folder import CocoSplit, read_coco, write_coco
from .errors import DataError
from .files import natural
from .records import identifier
from .similar import group_alike

MIN_GROUPS = 4  # of a class, from which one goes to val in any case


def split_off_val(
    train: CocoSplit, fraction: float, out_dir: str | Path, seed: int = 0
) -> tuple[CocoSplit, CocoSplit, list[str]]:
    """Take a part of the train images as the val split: of each class the same share, nearly equal pictures together.

    Args:
        train: what is split.
        fraction: share of the images to put into val, in (0, 1); at least one image goes to each side.
        out_dir: folder that ``train.json`` and ``val.json`` are written to; the images stay where they are.
        seed: which images are drawn.

    Returns:
        The new train split, the val split, and sentences about what was done.

    Raises:
        DataError: the fraction is none, or the file has fewer than two images.
    """
    if not 0 < fraction < 1:
        raise DataError(f'--val-fraction is {fraction}, expected a number between 0 and 1')
    coco = read_coco(train.ann_file)
    images = coco['images']
    if len(images) < 2:
        raise DataError(f'{train.title or train.ann_file} has {len(images)} image(s), too few to split off a val split')
    paths = [Path(train.image_dir, str(image.get('file_name')).replace('\0', '')) for image in images]
    groups, notes = _breakable(group_alike(paths), paths, fraction)
    chosen = choose_val(groups, _classes_in(coco), fraction, seed)
    splits = {}
    for name in ('train', 'val'):
        part = [image for index, image in enumerate(images) if (index in chosen) == (name == 'val')]
        ids = {identifier(image.get('id')) for image in part}  # None, too: the check will complain
        annotations = [entry for entry in coco['annotations'] if identifier(entry.get('image_id')) in ids]
        ann_file = Path(out_dir, f'{name}.json')
        write_coco(ann_file, {**coco, 'images': part, 'annotations': annotations})
        title = f'{train.title or train.ann_file}{", split off as val" if name == "val" else ""}'
        splits[name] = replace(train, name=name, ann_file=ann_file, title=title)
    share = len(chosen) / len(images)
    notes.insert(0, f'no val split is there: {len(chosen)} images ({share:.0%}) were taken from train, of each class')
    return splits['train'], replace(splits['val'], faults=()), notes


def choose_val(groups: Sequence[Sequence[int]], classes: Sequence[set], fraction: float, seed: int = 0) -> set[int]:
    """Images for val, by iterative stratification (Sechidis et al., ECML 2011) of groups of images.

    The rarest class is dealt out first, large groups before small ones, each to the side that still lacks most of it.

    Args:
        groups: positions of images that stay together.
        classes: of each image; images without any are a class of their own.
        fraction: share of val.
        seed: of the order in which groups are dealt.
    """
    groups = random.Random(seed).sample(list(groups), len(groups))
    contents = [Counter(name for index in group for name in classes[index] or {None}) for group in groups]
    n_images, n_val = len(classes), min(max(round(fraction * len(classes)), 1), len(classes) - 1)
    count, n_groups = sum(contents, Counter()), Counter(name for content in contents for name in content)
    lacking = {name: max(fraction * count[name], n_groups[name] >= MIN_GROUPS) for name in count}
    lacks = dict(val=Counter(lacking), train=Counter({name: count[name] - lacking[name] for name in count}))
    room = dict(val=n_val, train=n_images - n_val)
    val, left = set(), set(range(len(groups)))
    while left:
        remaining = Counter(name for g in left for name in contents[g])
        rarest = min(remaining, key=lambda name: (remaining[name], str(name)))
        for g in sorted((g for g in left if rarest in contents[g]), key=lambda g: (-len(groups[g]), g)):
            size = len(groups[g])
            wanted = (lacks['val'][rarest], room['val']) > (lacks['train'][rarest], room['train'])
            side = 'val' if wanted and size <= room['val'] else 'train'
            if side == 'val':
                val.update(groups[g])
            lacks[side].subtract(contents[g])
            room[side] -= size
            left.remove(g)
    return val or set(min(groups, key=len))


def _classes_in(coco: dict) -> list[set[Hashable]]:
    """Categories in each image."""
    found = {identifier(image.get('id')): set() for image in coco['images']}
    for entry in coco['annotations']:
        classes = found.get(identifier(entry.get('image_id')))
        if classes is not None:
            classes.add(identifier(entry.get('category_id')))
    return [found[identifier(image.get('id'))] for image in coco['images']]


def _breakable(groups: list[list[int]], paths: list[Path], fraction: float) -> tuple[list[list[int]], list[str]]:
    """Groups that leave enough for val; one of nearly all images, as of a camera that stands still, is cut in two."""
    together = [group for group in groups if len(group) > 1]
    if not together:
        return groups, []
    count = '1 group' if len(together) == 1 else f'{len(together)} groups'
    notes = [f'{sum(map(len, together))} images in {count} look nearly alike: each group is on one side']
    largest, n_val = max(groups, key=len), max(round(fraction * len(paths)), 1)
    if (missing := n_val - (len(paths) - len(largest))) <= 0:
        return groups, notes
    missing = min(missing, len(largest) - 1)
    ordered = sorted(largest, key=lambda index: natural(paths[index]))
    rest = [group for group in groups if group is not largest]
    where = f'{paths[ordered[-missing]].name} to {paths[ordered[-1]].name}'
    notes.append(
        f'{len(largest)} images look nearly alike, so the last of them, {where}, are val: its AP says too much'
    )
    return [*rest, ordered[:-missing], ordered[-missing:]], notes
