"""Counts and sizes among the arguments of layers."""

from torch.nn.modules.utils import _pair


def check_counts(least: int = 1, **counts: int) -> None:
    """Raises a ValueError that names the first argument that is not a whole number of at least ``least``."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < least:
            raise ValueError(f'{name} must be a whole number of at least {least}, got {count!r}')


def check_pairs(least: int = 1, **pairs: int | tuple[int, int]) -> list[tuple[int, int]]:
    """The numbers of y and x for each argument, which may give one for both.

    Raises:
        ValueError: names the first argument that is not one or two whole numbers of at least ``least``.
    """
    for name, pair in pairs.items():
        numbers = tuple(_pair(pair))
        if len(numbers) != 2 or not all(isinstance(number, int) and number >= least for number in numbers):
            raise ValueError(f'{name} must be one or two whole numbers of at least {least}, got {pair!r}')
    return [tuple(_pair(pair)) for pair in pairs.values()]
