"""Numbers as the page holds them: base64 of little-endian arrays, and maps thinned until they fit."""

import base64
import math
from collections.abc import Sequence

import numpy as np


def to_base64(array: np.ndarray) -> str:
    """The array's bytes."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def positions(
    points: np.ndarray,  # [..., 2], (x, y) in px of the image
    size: tuple[int, int],
) -> str:
    """16-bit numbers over twice the image's size (h, w) around it; what lies farther out is moved to that border.

    The step is 0.03 px in an image of 1000 px.
    """
    h, w = size
    shares = (points / [w, h] + 0.5) / 2
    return to_base64((shares * 65535).round().clip(0, 65535).astype('<u2'))


def weights(numbers: np.ndarray) -> str:
    """8-bit square roots of numbers in [0, 1]: steps of 0.002 at 0.06."""
    return to_base64((np.sqrt(numbers) * 255).round().astype('u1'))


def thinned(maps: Sequence[Sequence[float]], costs: Sequence[float], room: float) -> list[dict]:
    """Which cells of some maps there is room for: every n-th row and column, n growing on the map that takes most.

    Args:
        maps: (rows, columns) of each that are image, whole numbers or not.
        costs: of a cell of each map.
        room: for the cells of all maps; one cell of each stays in any case.

    Returns:
        Per map ``rows`` and ``columns``, numbers of those kept; ``cells``, as ``maps``; ``step`` between those kept and
        the ``first`` one, (row, column); and ``kept``, the ranges of rows and columns.
    """
    cells = [[math.ceil(n) for n in shape] for shape in maps]
    steps = [1] * len(maps)
    while True:
        kept = [[range((n - 1) % step // 2, n, step) for n in shape] for shape, step in zip(cells, steps)]
        counts = [len(rows) * len(columns) for rows, columns in kept]
        taken = [cost * count if count > 1 else 0 for cost, count in zip(costs, counts)]
        if sum(cost * count for cost, count in zip(costs, counts)) <= room or not any(taken):
            break
        steps[int(np.argmax(taken))] += 1
    return [
        dict(
            rows=len(rows),
            columns=len(columns),
            cells=list(shape),
            step=step,
            first=[rows[0], columns[0]],
            kept=(rows, columns),
        )
        for shape, step, (rows, columns) in zip(maps, steps, kept)
    ]
