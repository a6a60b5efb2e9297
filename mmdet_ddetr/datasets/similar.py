"""Which pictures of a data set are nearly the same: frames of a video, copies in another size, augmented copies."""

import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np

from .errors import DataError
from .files import natural
from .image_file import MAX_THREADS, read_thumbnail

COLUMNS, ROWS = 9, 8  # whose neighbours are compared: 64 bits
# bits that differ, and mean difference of the grey values (0..255) about their own mean. Of unrelated pictures of blood
# cells, of COCO and of drawn shapes no two in 60,000 pairs come as near as 10 bits.
ALIKE = 8, 12
ALIKE_NEIGHBOURS = 16, 20  # of pictures whose names say that one follows the other
BLOCK = 512  # pictures that are compared with all others at once


def group_alike(paths: Sequence[Path]) -> list[list[int]]:
    """Positions in ``paths`` of pictures that belong together, in the order of the first of each group.

    A picture is compared by its difference hash: whether each cell of a coarse grid is lighter than the one left of it
    (N. Krawetz, "Kind of Like That", 2013). Those that do not load are alone. Roboflow's augmented copies, whose names
    agree up to ``.rf.``, are together whatever they look like.
    """
    leader = list(range(len(paths)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    def unite(i: int, j: int) -> None:
        i, j = sorted((find(i), find(j)))
        leader[j] = i

    for i, j in [*_alike(paths), *_of_one_source(paths)]:
        unite(i, j)
    groups = defaultdict(list)
    for i in range(len(paths)):
        groups[find(i)].append(i)
    return list(groups.values())


def _alike(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Pairs that look alike, only as many as join all pictures that are: fewer than two a picture."""
    with ThreadPoolExecutor(MAX_THREADS) as pool:
        thumbnails = list(pool.map(_thumbnail, paths))
    known = np.array([i for i, thumbnail in enumerate(thumbnails) if thumbnail is not None], int)
    if len(known) < 2:
        return []
    grey = np.stack([thumbnails[i] for i in known]).astype(np.float32)  # [N, 16, 18]
    coarse = grey.reshape(-1, ROWS, 2, COLUMNS, 2).mean((2, 4))
    signs = np.where(coarse[:, :, 1:] > coarse[:, :, :-1], 1, -1).reshape(len(known), -1).astype(np.float32)  # [N, 64]
    grey -= grey.mean((1, 2), keepdims=True)

    def near(i: int | np.ndarray, j: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
        bits = (signs.shape[1] - (signs[i] * signs[j]).sum(1)) / 2
        difference = np.abs(grey[i] - grey[j]).mean((1, 2))
        return (bits <= limits[0]) & (difference <= limits[1])

    pairs, joined = [], np.arange(len(known))  # the same number where a chain of pairs leads from one to the other
    for start in range(0, len(known), BLOCK):
        products = signs[start : start + BLOCK] @ signs[start:].T  # 64 - 2 x bits that differ
        fits = np.triu(products >= signs.shape[1] - 2 * ALIKE[0], k=1)
        for row in np.flatnonzero(fits.any(1)):
            i, others = start + row, start + np.flatnonzero(fits[row])
            others = others[joined[others] != joined[i]]  # else a still camera has a pair for any two frames
            others = others[near(i, others, ALIKE)]
            numbers, first = np.unique(joined[others], return_index=True)
            if len(numbers):
                pairs += [(i, j) for j in others[first]]
                joined[np.isin(joined, numbers)] = joined[i]
    order = sorted(range(len(known)), key=lambda i: natural(paths[known[i]]))
    following = [(i, j) for i, j in zip(order, order[1:]) if _series(paths[known[i]]) == _series(paths[known[j]])]
    if following:
        i, j = np.array(following).T
        fits = near(i, j, ALIKE_NEIGHBOURS)
        pairs += zip(i[fits], j[fits])
    return [(int(known[i]), int(known[j])) for i, j in pairs]


def _thumbnail(path: Path) -> np.ndarray | None:
    try:
        return read_thumbnail(path, 2 * COLUMNS, 2 * ROWS)
    except DataError:
        return None


def _series(path: PurePath) -> tuple[PurePath, str]:
    """What the names of successive frames have in common: all but the last number."""
    return path.parent, re.sub(r'\d+(?=\D*$)', '#', path.stem)


def _of_one_source(paths: Sequence[Path]) -> list[tuple[int, int]]:
    first, pairs = {}, []
    for i, path in enumerate(paths):
        source, mark, _ = path.name.rpartition('.rf.')
        if mark:
            pairs.append((first.setdefault((path.parent, source), i), i))
    return pairs
