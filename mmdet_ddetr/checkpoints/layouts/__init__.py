"""The layouts of checkpoints that are known, a file for each paper, and how to tell them apart."""

from collections.abc import Iterable

from ..errors import CheckpointError
from . import anchor_detr, conditional_detr, dab_detr, deformable_detr, detr, sam_detr, smca_detr
from .layout import Layout

__all__ = ['LAYOUTS', 'NAMES', 'NATIVE', 'Layout', 'TARGETS', 'find_layout', 'get_target']

NATIVE = 'mmdet_ddetr'
TARGETS = (NATIVE, 'official', 'huggingface', 'mmdet', 'detrex')  # what can be written
# A paper whose keys are some of another's comes first, as does our layout in each.
LAYOUTS = (
    *detr.LAYOUTS,
    *deformable_detr.LAYOUTS,
    *conditional_detr.LAYOUTS,
    *dab_detr.LAYOUTS,
    *smca_detr.LAYOUTS,
    *anchor_detr.LAYOUTS,
    *sam_detr.LAYOUTS,
)
NAMES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))


def get_target(name: str, architecture: str) -> Layout:
    """The layout of that name and architecture, to be written."""
    if name not in TARGETS:
        raise CheckpointError(f'target: got {name!r}, expected one of {", ".join(TARGETS)}')
    found = [layout for layout in LAYOUTS if (layout.name, layout.architecture) == (name, architecture)]
    if not found:
        there = [layout.name for layout in LAYOUTS if layout.architecture == architecture and layout.name in TARGETS]
        raise CheckpointError(f'target: {name} has no {architecture}; {", ".join(there)} have it')
    return found[0]


def find_layout(keys: Iterable[str], name: str | None = None) -> Layout:
    """The layout that has all ``keys``.

    Args:
        keys: of a state_dict.
        name: look at the layouts of this name only.

    Raises:
        CheckpointError: none has; the message names the nearest and the first keys that do not fit it.
    """
    keys = list(keys)
    if name not in (None, *NAMES):
        raise CheckpointError(f'layout: got {name!r}, expected one of {", ".join(NAMES)}')
    candidates = [layout for layout in LAYOUTS if name in (None, layout.name)]
    unknown, nearest = None, None
    for layout in candidates:
        not_there = layout.unknown(keys)
        if keys and not not_there:
            return layout
        if unknown is None or len(not_there) < len(unknown):
            unknown, nearest = not_there, layout
    if len(unknown) == len(keys):
        raise CheckpointError(
            f'no known layout: none of the {len(keys)} keys ({", ".join(keys[:3])}, ...) is one of a detector '
            f'of this package in {", ".join(NAMES if name is None else [name])}'
        )
    raise CheckpointError(
        f'no known layout: the nearest, {nearest.name} {nearest.architecture}, has {len(keys) - len(unknown)} of the '
        f'{len(keys)} keys, but not {", ".join(unknown[:5])}{", ..." if len(unknown) > 5 else ""}'
    )
