"""Which stages a backbone gives, freezes and needs."""

from collections.abc import Sequence


def num_built(out_indices: Sequence[int], frozen_stages: int, count: int) -> int:
    """How many of ``count`` stages to build: those up to the last output.

    Raises:
        ValueError: ``out_indices`` are not ascending indices of stages, or so many stages cannot be frozen.
    """
    known = isinstance(out_indices, Sequence) and sorted(set(out_indices) & set(range(count)))
    if not known or list(out_indices) != known:
        raise ValueError(f'out_indices: got {out_indices!r}, expected ascending indices from 0 to {count - 1}')
    built = out_indices[-1] + 1
    if frozen_stages not in range(-1, built + 1):
        raise ValueError(f'frozen_stages: got {frozen_stages!r}, expected -1 to {built}')
    return built
