"""Rows of the class branches by the names of their classes."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from . import coco_classes
from .branches import LABELS, class_branches, objectness_branch
from .report import ConversionReport

SHOWN = 10  # names in a report


def names_in(checkpoint: Mapping) -> tuple[str, ...] | None:
    """The names of a checkpoint's classes, as mmengine or MMDetection 2 wrote them; None if it has none."""
    meta = checkpoint.get('meta') or {}
    names = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    return tuple(names) if isinstance(names, list | tuple) else None


def names_of_rows(
    state_dict: Mapping[str, Tensor], names: Sequence[str] | None, has_background: bool
) -> tuple[str, ...] | None:
    """A name for each class row: ``names`` if there are as many, else COCO's if there are 80 or 91; None if neither."""
    rows = {len(state_dict[key]) - has_background for key in class_branches(state_dict)}
    if len(rows) != 1:
        return None
    number = rows.pop()
    if names is not None:
        return tuple(names) if len(names) == number else None
    if number == len(coco_classes.IDS):
        return tuple(coco_classes.dataset_meta()['classes'])
    return tuple(coco_classes.names_of_ids()) if number == coco_classes.NUM_IDS else None


def copy_by_name(
    state_dict: dict[str, Tensor],
    own: Mapping[str, Tensor],
    names: Sequence[str],
    classes: Sequence[str],
    has_background: bool,
    report: ConversionReport,
) -> None:
    """Give each class the row that the checkpoint has for its name, and else the model's.

    Names that differ in case alone are one where there is no other of them.

    The encoder's branch of a two-stage model keeps row 0, the only one that is trained and read: it says "object". The
    last row of a softmax head says "no object", that of a label embedding may say "no label": these are kept.

    Args:
        state_dict: of the checkpoint; changed in place.
        own: of the model, initialised.
        names: of the checkpoint's class rows.
        classes: of the model's.
    """
    if list(names) == list(classes):
        return
    rows = {label: row for label, name in enumerate(classes) if (row := _row_of(name, names)) is not None}
    encoder = objectness_branch(state_dict)
    copied = [classes[label] for label in rows]
    new = [name for label, name in enumerate(classes) if label not in rows]
    why = f'rows of {len(copied)} classes by name' + (f', {len(new)} anew' if new else '')
    for key, index in [*class_branches(state_dict).items(), (LABELS, None)]:
        if key not in state_dict or key not in own or state_dict[key].shape[1:] != own[key].shape[1:]:
            continue
        theirs, ours = state_dict[key], own[key].to(state_dict[key], copy=True)
        is_encoder = key != LABELS and index == encoder
        if is_encoder and len(theirs) == len(ours):
            continue  # whatever else its rows are, row 0 has its place
        if len(theirs) - len(names) != len(ours) - len(classes):
            continue  # not a row for each class
        if rows:
            ours[list(rows)] = theirs[list(rows.values())]
        if is_encoder:
            ours[0] = theirs[0]
        elif len(ours) > len(classes):
            ours[len(classes) :] = theirs[len(names) :]
        report.resize(key, theirs.shape, ours.shape, why + (', row 0 kept' if is_encoder else ''))
        state_dict[key] = ours
    report.notes.append(
        f'classes by name: {len(copied)} of {len(classes)} have a row in the checkpoint ({_shown(copied)}); '
        f'anew: {_shown(new)}'
    )


def _row_of(name: str, names: Sequence[str]) -> int | None:
    """The row of a name, or of the only one like it but for its case."""
    if name in names:
        return names.index(name)
    like = [row for row, other in enumerate(names) if other.casefold() == name.casefold()]
    return like[0] if len(like) == 1 else None


def _shown(names: Sequence[str]) -> str:
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '') or 'none'
