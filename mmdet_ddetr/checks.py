"""Checks of arguments that several parts share."""

from numbers import Real


def check_score(name: str, value) -> None:
    """Raise ValueError that names the argument if it is no score."""
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f'{name} must be a number from 0 to 1, got {value!r}')
