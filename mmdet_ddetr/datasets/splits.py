"""Take a part of the train images as the val split."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .coco_folder import CocoSplit, read_coco, write_coco
from .errors import DataError
from .file_names import REMEDY, RULE, misspelt_names
from .files import natural
from .records import identifier
from .report import counted
from .similar import group_alike

MIN_GROUPS = 4  # of a class, from which one goes to val in any case


def split_off_val(
    train: CocoSplit, fraction: float, out_dir: str | Path, seed: int = 0, earlier: Sequence[str | Path] = ()
) -> tuple[CocoSplit, CocoSplit, list[str]]:
    """Take a part of the train images as the val split: of each class the same share, nearly equal pictures together.

    Images that an earlier split has stay on their side, for a training may go on from one that saw them; only new ones
    are dealt.

    Args:
        train: what is split.
        fraction: share of the images to put into val, in (0, 1); at least one image goes to each side.
        out_dir: folder that ``train.json`` and ``val.json`` are written to; the images stay where they are.
        seed: which images are drawn.
        earlier: such folders of trainings that this one goes on from.

    Returns:
        The new train split, the val split, and sentences about what was done.

    Raises:
        DataError: the fraction is none, the file has fewer than two images, or all were trained on before.
    """
    if not 0 < fraction < 1:
        raise DataError(f'--val-fraction is {fraction}, expected a number between 0 and 1')
    coco = read_coco(train.ann_file)
    images = coco['images']
    if len(images) < 2:
        raise DataError(f'{train.title or train.ann_file} has {len(images)} image(s), too few to split off a val split')
    misspelt = misspelt_names(train.image_dir, images)
    if misspelt:
        train = replace(
            train, faults=(*train.faults, *(('note', RULE, f'{a} -> {b}', REMEDY) for a, b in misspelt.items()))
        )
        images = [_renamed(image, misspelt) for image in images]
    paths = [Path(train.image_dir, str(image.get('file_name')).replace('\0', '')) for image in images]
    file_names = [str(image.get('file_name')) for image in images]
    groups, notes = group_alike(paths), []
    folders = [Path(folder) for folder in earlier]
    known = _dealt_before(folders, file_names)
    if known:
        groups = [part for group in groups for part in _by_side(group, known)]
        new = len(images) - len(known)
        if not new and 'val' not in known.values():
            raise DataError(
                f'{train.title or train.ann_file} has {len(images)} images, all of which are in the train split of '
                f'{" or ".join(map(str, folders))}: none is left for a val split; add images, or use another --work-dir'
            )
        notes.append(f'{len(known)} images are on the side that an earlier split gave them; {new} are new')
    else:
        groups, notes = _breakable(groups, paths, fraction)
    chosen = choose_val(groups, _classes_in(coco), fraction, seed, file_names, known)
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
    number = counted(len(chosen), 'image')
    notes.insert(
        0, f'no val split is there: {number} ({share:.0%}) of train became val, nearly the same share of each class'
    )
    return splits['train'], replace(splits['val'], faults=()), notes


def choose_val(
    groups: Sequence[Sequence[int]],
    classes: Sequence[set],
    fraction: float,
    seed: int = 0,
    names: Sequence[str] | None = None,
    known: Mapping[int, str] | None = None,
) -> set[int]:
    """Images for val, by iterative stratification (Sechidis et al., ECML 2011) of groups of images.

    The rarest class is dealt out first, large groups before small ones, to val until that has its share of it.

    Args:
        groups: positions of images that stay together.
        classes: of each image; images without any are a class of their own.
        fraction: share of val.
        seed: of the order in which groups are dealt.
        names: of the images, which decide about that order together with the seed; None: their positions.
        known: side, 'train' or 'val', of images that are dealt already; all of a group or none.
    """
    names, known = names or range(len(classes)), known or {}
    groups = sorted(groups, key=lambda group: _rank(seed, min(str(names[index]) for index in group)))
    contents = [Counter(name for index in group for name in classes[index] or {None}) for group in groups]
    n_images, n_val = len(classes), min(max(round(fraction * len(classes)), 1), len(classes) - 1)
    count, n_groups = sum(contents, Counter()), Counter(name for content in contents for name in content)
    lacking = {name: max(fraction * count[name], n_groups[name] >= MIN_GROUPS) for name in count}
    lacks = dict(val=Counter(lacking), train=Counter({name: count[name] - lacking[name] for name in count}))
    room = dict(val=n_val, train=n_images - n_val)
    # no group is more than half of val, where smaller ones are enough for it
    largest = n_val // 2 if sum(len(group) for group in groups if len(group) <= n_val // 2) >= n_val else n_val
    val, left = set(), set(range(len(groups)))

    def deal(g: int, side: str) -> None:
        if side == 'val':
            val.update(groups[g])
        lacks[side].subtract(contents[g])
        room[side] -= len(groups[g])
        left.remove(g)

    for g, group in enumerate(groups):
        if group[0] in known:
            deal(g, known[group[0]])
    while left:
        remaining = Counter(name for g in left for name in contents[g])
        rarest = min(remaining, key=lambda name: (remaining[name], str(name)))
        for g in sorted((g for g in left if rarest in contents[g]), key=lambda g: (-len(groups[g]), g)):
            # the first of the order are val, so that added images move few
            wanted = lacks['val'][rarest] >= contents[g][rarest] / 2
            deal(g, 'val' if wanted and len(groups[g]) <= min(room['val'], largest) else 'train')
    return val or set(min((group for group in groups if group[0] not in known), key=len))


def _renamed(image: dict, names: Mapping[str, str]) -> dict:
    name = image.get('file_name')
    return {**image, 'file_name': names[name]} if isinstance(name, str) and name in names else image


def _rank(seed: int, name: str) -> bytes:
    """A place in the order that does not depend on what else is there: added images move few from side to side."""
    return hashlib.sha256(f'{seed} {name}'.encode('utf-8', 'surrogatepass')).digest()


def _dealt_before(folders: Iterable[Path], file_names: Sequence[str]) -> dict[int, str]:
    """Sides of the images that splits in these folders have; 'train' where any of them has it there."""
    side_of = {}
    for side in ('val', 'train'):
        for folder in folders:
            try:
                images = read_coco(folder / f'{side}.json', ['images'])['images']
            except DataError:  # there is none
                continue
            side_of.update((str(image.get('file_name')), side) for image in images)
    known = {index: side_of[name] for index, name in enumerate(file_names) if name in side_of}
    # where nothing of train is left, nothing that was trained on can become val
    return known if 'train' in known.values() or len(known) < len(file_names) else {}


def _by_side(group: Sequence[int], known: Mapping[int, str]) -> list[list[int]]:
    """A group in parts that are on one side; its new images follow those of train, if there are any, else of val."""
    sides = {known[index] for index in group if index in known}
    if not sides:
        return [list(group)]
    follow = 'train' if 'train' in sides else 'val'
    parts = {side: [index for index in group if known.get(index, follow) == side] for side in ('train', 'val')}
    return [sorted(part, key=lambda index: index not in known) for part in parts.values() if part]


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
        f'{len(largest)} images look nearly alike, so the last of them, {where}, are val: its AP will look better '
        'than it is'
    )
    return [*rest, ordered[:-missing], ordered[-missing:]], notes
