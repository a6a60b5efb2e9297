"""What has a row for each class in a state_dict of ours, and the box branches: how many, which is whose."""

import re

import torch
from torch import Tensor

from .errors import CheckpointError
from .report import ConversionReport

BRANCH = re.compile(r'bbox_head\.(?P<kind>cls|reg)_branches\.(?P<index>\d+)\.(?P<rest>.+)')

LABELS = 'dn_query_generator.label_embedding.weight'  # of denoising queries, a row per class


def is_two_stage(state_dict: dict[str, Tensor]) -> bool:
    """Whether the encoder proposes the first references, with a branch of its own after the decoder's."""
    return 'memory_trans_fc.weight' in state_dict


def objectness_branch(state_dict: dict[str, Tensor]) -> int | None:
    """Index of the encoder's branch if it says "object" alone, in row 0; None if none does.

    DAB-Deformable-DETR's tells classes; no position of a query follows from its proposals.
    """
    has_one = is_two_stage(state_dict) and 'pos_trans_fc.weight' in state_dict
    return num_decoder_layers(state_dict) if has_one else None


def has_indicator(state_dict: dict[str, Tensor]) -> bool:
    """Whether queries have a channel that says which are denoising ones (``DenoisingQueries``).

    The label embedding is narrower by that channel, and has a last row, which predictions may read.
    """
    return LABELS in state_dict and state_dict[LABELS].shape[1] < len(state_dict['decoder.layers.0.norms.0.weight'])


def num_decoder_layers(state_dict: dict[str, Tensor]) -> int:
    """Decoder layers; also the index of the encoder's branch in a two-stage model."""
    return len({key.split('.')[2] for key in state_dict if key.startswith('decoder.layers.')})


def class_branches(state_dict: dict[str, Tensor]) -> dict[str, int]:
    """Keys of the class branches' weights and biases, and the index of each one's branch."""
    found = {key: BRANCH.fullmatch(key) for key in state_dict}
    return {key: int(match['index']) for key, match in found.items() if match and match['kind'] == 'cls'}


def are_shared(state_dict: dict[str, Tensor], kind: str) -> bool:
    """Whether all branches of a kind, 'cls' or 'reg', are one."""
    for key, tensor in state_dict.items():
        match = BRANCH.fullmatch(key)
        if match and match['kind'] == kind:
            first = state_dict.get(f'bbox_head.{kind}_branches.0.{match["rest"]}')
            if first is None or not torch.equal(first, tensor):
                return False
    return True


def spread(state_dict: dict[str, Tensor], report: ConversionReport) -> None:
    """Write a branch that is stored once under the names of all layers. Changes ``state_dict``."""
    count = num_decoder_layers(state_dict) + is_two_stage(state_dict)
    indices = {
        kind: {m['index'] for key in state_dict if (m := BRANCH.fullmatch(key)) and m['kind'] == kind}
        for kind in ('cls', 'reg')
    }
    for key, tensor in list(state_dict.items()):
        match = BRANCH.fullmatch(key)
        if match and indices[match['kind']] == {'0'}:
            for index in range(1, count):
                name = f'bbox_head.{match["kind"]}_branches.{index}.{match["rest"]}'
                state_dict[name] = tensor
                report.added[name] = 'one branch serves all layers'


def gather(state_dict: dict[str, Tensor], report: ConversionReport) -> None:
    """Keep one branch of each kind for all layers. Changes ``state_dict``."""
    for kind in ('cls', 'reg'):
        if not are_shared(state_dict, kind):
            raise CheckpointError(f'the layers have different {kind}_branches; this layout has one for all')
    for key in list(state_dict):
        match = BRANCH.fullmatch(key)
        if match and match['index'] != '0':
            del state_dict[key]
            if report.added.pop(key, None) is None:  # else it was written for us alone
                report.dropped[key] = 'one branch serves all layers'
