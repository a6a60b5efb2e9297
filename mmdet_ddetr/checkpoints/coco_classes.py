"""COCO's 80 classes and its 91 category ids.

The official codes give their heads a row for every category id: 0 is unused, and so are ten others. MMDetection numbers
the 80 classes in the order of their ids. DETR has a last row for "no object" in both.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .branches import LABELS, class_branches, objectness_branch
from .errors import CheckpointError
from .report import ConversionReport

IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
NUM_IDS = 91
NEVER = -100.0  # logit of a row without class: no detection, and nothing added to a softmax


def dataset_meta() -> dict:
    """MMDetection's names and colours of the 80 classes."""
    from mmdet.datasets import CocoDataset  # seconds

    return dict(CocoDataset.METAINFO)


def names_of_ids() -> list[str]:
    """The 80 names at their category ids, as the hub has them; 'N/A' at the ids without class."""
    classes = dict(zip(IDS, dataset_meta()['classes']))
    return [classes.get(i, 'N/A') for i in range(NUM_IDS)]


def are_coco(names: Sequence[str]) -> bool:
    """Whether these are COCO's classes: its 80 names, or 91 with each name at its category id."""
    classes = dataset_meta()['classes']
    return list(names[i] for i in IDS if i < len(names)) == list(classes) or list(names) == list(classes)


def num_rows(state_dict: dict[str, Tensor]) -> int:
    """Rows of the class branches, the one for "no object" included.

    Raises:
        CheckpointError: there are no class branches, or they differ.
    """
    rows = {key: len(state_dict[key]) for key in class_branches(state_dict)}
    if len(set(rows.values())) != 1:
        raise CheckpointError(f'the class branches have different numbers of rows: {rows or "none"}')
    return next(iter(rows.values()))


def counts(num_classes: int, architecture: str) -> tuple[int, ...]:
    """Rows that class branches with so many classes can have; DETR has a further one unless its loss is a focal one."""
    return (num_classes, num_classes + 1) if architecture == 'DETR' else (num_classes,)


def to_80(state_dict: dict[str, Tensor], report: ConversionReport) -> None:
    """Select the rows of the 80 classes. Changes ``state_dict``.

    The encoder's branch of a two-stage model keeps row 0, the only one that is trained and read: it says "object".
    """
    for key, is_encoder in _tables(state_dict):
        before = state_dict[key]
        rows = [*((0, *IDS[1:]) if is_encoder else IDS), *range(NUM_IDS, len(before))]
        state_dict[key] = before[rows]
        why = 'rows of the 80 COCO classes' + (', row 0 kept' if is_encoder else '')
        report.resize(key, before.shape, state_dict[key].shape, why)


def to_91(state_dict: dict[str, Tensor], report: ConversionReport) -> None:
    """The inverse of :func:`to_80`; rows without class get zero weights and a bias that no score survives."""
    for key, is_encoder in _tables(state_dict):
        before = state_dict[key]
        number = NUM_IDS + len(before) - len(IDS)  # with "no object", or "no label"
        rows = [*((0, *IDS[1:]) if is_encoder else IDS), *range(NUM_IDS, number)]
        after = before.new_full((number, *before.shape[1:]), NEVER if before.dim() == 1 else 0)
        after[rows] = before
        state_dict[key] = after
        report.resize(key, before.shape, after.shape, 'a row for each COCO category id')


def drop_last_row(state_dict: dict[str, Tensor], report: ConversionReport) -> None:
    """Take away the row of no class. Changes ``state_dict``."""
    for key, _ in _branches(state_dict):
        before = state_dict[key]
        state_dict[key] = before[:-1]
        report.resize(key, before.shape, state_dict[key].shape, 'without the last row, which is of no class')


def add_last_row(state_dict: dict[str, Tensor], report: ConversionReport) -> None:
    """The inverse of :func:`drop_last_row`, with a row that no score survives."""
    for key, _ in _branches(state_dict):
        before = state_dict[key]
        row = before.new_full((1, *before.shape[1:]), NEVER if before.dim() == 1 else 0)
        state_dict[key] = torch.cat([before, row])
        report.resize(key, before.shape, state_dict[key].shape, 'with a last row of no class')


def _tables(state_dict: dict[str, Tensor]) -> list[tuple[str, bool]]:
    """``_branches``, and the label embedding of denoising queries where there is one."""
    return _branches(state_dict) + [(LABELS, False)] * (LABELS in state_dict)


def _branches(state_dict: dict[str, Tensor]) -> list[tuple[str, bool]]:
    """Keys of the class branches, each with whether it is the encoder's."""
    encoder = objectness_branch(state_dict)
    return [(key, index == encoder) for key, index in class_branches(state_dict).items()]
