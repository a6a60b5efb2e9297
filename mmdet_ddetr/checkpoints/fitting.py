"""A checkpoint for a model with other classes or another number of queries."""

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from .branches import class_branches, is_two_stage, num_decoder_layers
from .errors import CheckpointError
from .report import Report

QUERIES = 'query_embedding.weight'


def fit(state_dict: dict[str, Tensor], model: nn.Module, report: Report | None = None) -> dict[str, Tensor]:
    """Fit weights in our layout to a model that is to be trained further.

    With another number of classes the class branches start as the model initialised them, but for two rows that do not
    belong to a class: "object", row 0 of the encoder's branch in a two-stage model, and "no object", the last row of
    DETR's. With fewer queries the first ones are kept; with more, those beyond the checkpoint's start as the model
    initialised them.

    Args:
        state_dict: weights in our layout; not changed.
        model: initialised; not changed.
        report: gets what was dropped and resized.

    Raises:
        CheckpointError: the neck's convolutions have biases, and the model has none.
    """
    report = Report() if report is None else report
    model = model.module if is_model_wrapper(model) else model
    own = model.state_dict()
    fitted = drop_zero_neck_biases(state_dict, own, report)
    encoder = num_decoder_layers(state_dict) if is_two_stage(state_dict) else None
    for key, index in class_branches(state_dict).items():
        if _differ(own, state_dict, key):
            fitted[key] = own[key].clone()
            why = 'class rows anew'
            if index == encoder:
                fitted[key][0] = state_dict[key][0]
                why += ', row 0 kept'
            elif not model.bbox_head.loss_cls.use_sigmoid:
                fitted[key][-1] = state_dict[key][-1]
                why += ', row of "no object" kept'
            report.resize(key, state_dict[key].shape, own[key].shape, why)
    if _differ(own, state_dict, QUERIES):
        kept = min(len(own[QUERIES]), len(state_dict[QUERIES]))
        fitted[QUERIES] = torch.cat([state_dict[QUERIES][:kept], own[QUERIES][kept:].to(state_dict[QUERIES])])
        report.resize(QUERIES, state_dict[QUERIES].shape, own[QUERIES].shape, f'the first {kept} kept')
    return fitted


def drop_zero_neck_biases(state_dict: dict[str, Tensor], own: dict[str, Tensor], report: Report) -> dict[str, Tensor]:
    """A copy without the neck's biases where the model has none; refused if its outputs would not be the same."""
    biases = [
        key
        for key in state_dict
        if key.startswith('neck.')
        and key.endswith('.conv.bias')
        and key not in own
        and key.replace('.bias', '.weight') in own
    ]
    if any(state_dict[key].any() for key in biases):
        raise CheckpointError(
            f'{biases[0]} and {len(biases) - 1} more have no place in the model, whose outputs would be wrong without '
            'them: set model.neck.bias=True'
        )
    report.dropped.update(dict.fromkeys(biases, 'zeros, the same as none'))
    return {key: value for key, value in state_dict.items() if key not in biases}


def check_fit(state_dict: dict[str, Tensor], model: nn.Module) -> None:
    """Refuse weights that a model would use in part: mmengine only warns, and predicts with what is left.

    Raises:
        CheckpointError: with the first tensor that has another shape or, of the neck's biases, no place.
    """
    own = model.state_dict()
    drop_zero_neck_biases(state_dict, own, Report())
    wrong = [key for key, value in state_dict.items() if key in own and own[key].shape != value.shape]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f'{len(wrong)} tensors do not fit the model; {key} is {list(state_dict[key].shape)} in the checkpoint and '
            f'{list(own[key].shape)} in the model'
        )


def _differ(own: dict[str, Tensor], state_dict: dict[str, Tensor], key: str) -> bool:
    """Whether a tensor of both has another number of rows, and is alike otherwise."""
    if key not in own or key not in state_dict:
        return False
    ours, theirs = own[key].shape, state_dict[key].shape
    return ours != theirs and ours[1:] == theirs[1:]
