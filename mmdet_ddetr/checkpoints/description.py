"""What weights say about their model, so that one finds the config that fits."""

import re

from torch import Tensor

from .branches import are_shared, has_indicator, is_two_stage, num_decoder_layers
from .coco_classes import num_rows
from .layouts import NATIVE, find_layout

RESNETS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}


def describe(state_dict: dict[str, Tensor]) -> str:
    """One line about weights in our layout: 'Deformable DETR, ResNet-50, 4 levels, 6 + 6 layers, ...'."""
    blocks = count_names(state_dict, 'backbone.layer3.', 2)
    depth = RESNETS.get((blocks, 'backbone.layer3.0.conv3.weight' in state_dict))
    architecture = find_layout(state_dict, NATIVE).architecture
    parts = [re.sub(r'(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=.)(?=DETR)', ' ', architecture)]
    parts += [f'ResNet-{depth}'] if depth else []
    parts += [f'{len(state_dict["level_embed"])} levels'] if 'level_embed' in state_dict else []
    parts += [f'{count_names(state_dict, "encoder.layers.", 2)} + {num_decoder_layers(state_dict)} layers']
    parts += [] if are_shared(state_dict, 'reg') else ['box refinement']
    parts += ['two-stage'] if is_two_stage(state_dict) else []
    for name, key in (('queries', 'query_embedding.weight'), ('patterns', 'patterns.weight')):
        parts += [f'{len(state_dict[key])} {name}'] if key in state_dict and not is_two_stage(state_dict) else []
    parts += ['denoising indicator'] if has_indicator(state_dict) else []
    return ', '.join([*parts, f'{num_rows(state_dict)} class rows'])


def count_names(state_dict: dict[str, Tensor], prefix: str, position: int) -> int:
    """How many different names stand at ``position`` of the keys with a prefix: layers, blocks."""
    return len({key.split('.')[position] for key in state_dict if key.startswith(prefix)})
