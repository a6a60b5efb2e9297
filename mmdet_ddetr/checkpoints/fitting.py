"""A checkpoint for a model with other classes or another number of queries."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet_ddetr.unwrap import unwrap

from .branches import LABELS, class_branches, has_indicator, objectness_branch
from .class_rows import copy_by_name, names_of_rows
from .conversion import COUNTER
from .errors import CheckpointError
from .report import ConversionReport

QUERIES = ('query_embedding.weight', 'content_embedding.weight')  # the latter of DAB-Deformable-DETR
NECK_CONV = re.compile(r'neck\..*\.conv\.weight')
READ = ('backbone.', 'neck.', 'encoder.', 'decoder.')  # by every prediction; branches of the head may be for training
INDEX = re.compile(r'\.\d+(?=\.)')


def fit(
    state_dict: dict[str, Tensor],
    model: nn.Module,
    report: ConversionReport | None = None,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Fit weights in our layout to a model that is to be trained further.

    A class starts from the row of the class branches that has its name, and without one as the model initialised it.
    Two rows do not belong to a class and are kept: "object", row 0 of the encoder's branch in a two-stage model, and
    "no object", the last row of DETR's. Where names are not known, all class rows are kept if there are as many as
    classes, and none if not. With fewer queries the first ones are kept; with more, those beyond the checkpoint's start
    as the model initialised them.

    Args:
        state_dict: weights in our layout; not changed.
        model: initialised; not changed.
        report: gets what was dropped, added and resized.
        names: of the checkpoint's classes; None: COCO's, if there are 80 or 91 rows.
        classes: of the model; None: not known.

    Raises:
        CheckpointError: the neck's convolutions have biases, and the model has none.
    """
    report = ConversionReport() if report is None else report
    model = unwrap(model)
    own = model.state_dict()
    fitted = match_neck_biases(state_dict, own, report)
    if classes is not None:
        fitted = take_classes(fitted, model, names, classes, report)
    encoder = objectness_branch(state_dict)
    for key, index in class_branches(state_dict).items():
        if _differ(own, fitted, key):
            fitted[key] = own[key].clone()
            why = 'class rows anew'
            if index == encoder:
                fitted[key][0] = state_dict[key][0]
                why += ', row 0 kept'
            elif not model.bbox_head.loss_cls.use_sigmoid:
                fitted[key][-1] = state_dict[key][-1]
                why += ', row of "no object" kept'
            report.resize(key, state_dict[key].shape, own[key].shape, why)
    if _differ(own, fitted, LABELS):
        fitted[LABELS] = own[LABELS].clone()
        why = 'class rows anew'
        if has_indicator(own):
            fitted[LABELS][-1] = state_dict[LABELS][-1]
            why += ', row of "no label" kept'
        report.resize(LABELS, state_dict[LABELS].shape, own[LABELS].shape, why)
    for key in (key for key in QUERIES if _differ(own, state_dict, key)):
        kept = min(len(own[key]), len(state_dict[key]))
        fitted[key] = torch.cat([state_dict[key][:kept], own[key][kept:].to(state_dict[key])])
        report.resize(key, state_dict[key].shape, own[key].shape, f'the first {kept} kept')
    return fitted


def take_classes(
    state_dict: dict[str, Tensor],
    model: nn.Module,
    names: Sequence[str] | None,
    classes: Sequence[str],
    report: ConversionReport,
) -> dict[str, Tensor]:
    """A copy whose class rows are those of ``classes``, by name, where names are known; arguments as of ``fit``."""
    model = unwrap(model)
    state_dict = dict(state_dict)
    if class_branches(state_dict):
        has_background = not model.bbox_head.loss_cls.use_sigmoid
        if names := names_of_rows(state_dict, names, has_background):
            copy_by_name(state_dict, model.state_dict(), names, classes, has_background, report)
    return state_dict


def match_neck_biases(
    state_dict: dict[str, Tensor], own: dict[str, Tensor], report: ConversionReport
) -> dict[str, Tensor]:
    """A copy with biases before the neck's norms if the model has them, and without if not: 0 and none are the same.

    Raises:
        CheckpointError: biases other than 0 have no place in the model.
    """
    convs = [key for key in own if NECK_CONV.fullmatch(key) and key in state_dict]
    names = [key.replace('.weight', '.bias') for key in convs]
    extra = [name for name in names if name in state_dict and name not in own]
    missing = [name for name in names if name in own and name not in state_dict]
    if any(state_dict[name].any() for name in extra):
        raise CheckpointError(
            f'{extra[0]} and {len(extra) - 1} more have no place in the model, whose outputs would be wrong without '
            'them: set model.neck.bias=True'
        )
    report.dropped.update(dict.fromkeys(extra, 'zeros, the same as none'))
    report.added.update(dict.fromkeys(missing, 'zeros, the same as none'))
    kept = {key: value for key, value in state_dict.items() if key not in extra}
    return kept | {name: torch.zeros_like(own[name]) for name in missing}


def check_fit(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights that fill a model; mmengine only warns of those that do not, and predicts with what is left.

    Returns:
        ``state_dict`` with the biases of the neck as the model has them.

    Raises:
        CheckpointError: with the first tensors that are missing or have another shape, or the first layers that have no
            place though a prediction runs them.
    """
    own = model.state_dict()
    fitted = match_neck_biases(state_dict, own, ConversionReport())
    if has_indicator(state_dict) and LABELS not in own:
        raise CheckpointError(
            f'{LABELS} has no place in the model, whose queries would start without it as they never did: set '
            'model.dn_cfg.indicator=True, as in the configs of DN-DETR'
        )
    if beyond := layers_beyond(fitted, own):
        raise CheckpointError(f'it has {len(beyond)} layers that the model lacks: {", ".join(beyond[:3])}')
    wrong = [key for key, value in fitted.items() if key in own and own[key].shape != value.shape]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f'{len(wrong)} tensors do not fit the model; {key} is {list(fitted[key].shape)} in the checkpoint and '
            f'{list(own[key].shape)} in the model'
        )
    missing = [key for key in own if key not in fitted and not key.endswith(COUNTER)]
    if missing:
        raise CheckpointError(f'it lacks {len(missing)} tensors of the model: {", ".join(missing[:3])}')
    return fitted


def layers_beyond(state_dict: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Layers that a longer stack than the model's has, as ``decoder.layers.5``, in their order."""
    of_model = {name for key in own for names in _layers(key) for name in names}
    rest = (names for key in state_dict if key not in own and key.startswith(READ) for names in _layers(key))
    return list(dict.fromkeys(layer for stack, layer in rest if stack in of_model and layer not in of_model))


def _layers(key: str) -> list[tuple[str, str]]:
    """Stacks and layers that a tensor lies in: ('decoder.layers', 'decoder.layers.5') and so on."""
    return [(key[: match.start()], key[: match.end()]) for match in INDEX.finditer(key)]


def _differ(own: dict[str, Tensor], state_dict: dict[str, Tensor], key: str) -> bool:
    """Whether a tensor of both has another number of rows, and is alike otherwise."""
    if key not in own or key not in state_dict:
        return False
    ours, theirs = own[key].shape, state_dict[key].shape
    return ours != theirs and ours[1:] == theirs[1:]
