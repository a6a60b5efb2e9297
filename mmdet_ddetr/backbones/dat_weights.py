"""The checkpoint scheme ``dat://``: the ImageNet weights of DAT's authors."""

import re
from collections import OrderedDict
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmdet_ddetr.checkpoints.errors import CheckpointError
from mmdet_ddetr.checkpoints.read import read

SCHEME = 'dat://'
FILES = {
    'tiny': 'dat_tiny_in1k_224.pth',
    'small': 'dat_small_in1k_224.pth',
    'base': 'dat_base_in1k_224.pth',
    'base-384': 'dat_base_in1k_384.pth',
}
SOURCE = 'https://github.com/LeapLabTHU/DAT/tree/7edbb9b#evaluate-pretrained-models'

# Applied in this order; an empty name has no counterpart here: the head, and buffers that are computed.
RULES = (
    (r'^cls_(norm|head)\..*', ''),
    (r'^.*\.(relative_position_index|attn_mask)', ''),
    (r'^patch_proj\.', 'merges.0.'),
    (r'^down_projs\.(\d)\.', lambda m: f'merges.{int(m[1]) + 1}.'),
    (r'(?<=merges\.\d\.)0\.', 'proj.'),
    (r'(?<=merges\.\d\.)1\.norm\.', 'norm.'),
    (r'layer_norms\.(\d+)\.norm\.', lambda m: f'{int(m[1]) // 2}.norm{int(m[1]) % 2 + 1}.'),
    (r'mlps\.(\d+)\.chunk\.linear1\.', r'\1.ffn.0.'),
    (r'mlps\.(\d+)\.chunk\.linear2\.', r'\1.ffn.2.'),
    (r'attns\.(\d+)\.', r'\1.attn.'),
    (r'proj_qkv\.', 'qkv.'),
    (r'proj_q\.', 'query_proj.'),
    (r'proj_k\.', 'key_proj.'),
    (r'proj_v\.', 'value_proj.'),
    (r'proj_out\.', 'output_proj.'),
    (r'conv_offset\.0\.', 'offset_conv.'),
    (r'conv_offset\.1\.norm\.', 'offset_norm.'),
    (r'conv_offset\.3\.', 'offset_proj.'),
    (r'relative_position_bias_table$|rpe_table$', 'position_bias_table'),
)


# The training code saves its config beside the weights, in a dict of yacs, which need not be installed to read it.
CONFIG = (OrderedDict, 'yacs.config.CfgNode')


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_dat(filename: str, map_location=None) -> dict[str, Tensor]:
    """Load the authors' weights under the names of :class:`DAT`.

    Args:
        filename: 'dat://' followed by 'tiny', 'small', 'base', 'base-384', or by the path of a file.
        map_location: As in :func:`torch.load`.

    Returns:
        The state_dict of :class:`DAT` of that arch with all stages, without the norms of its outputs.

    Raises:
        CheckpointError: no such file, or one that cannot be read or is of another model. The message names it.
    """
    name = filename.removeprefix(SCHEME)
    path = Path(name).expanduser()
    if name in FILES:
        path = Path(torch.hub.get_dir(), 'checkpoints', FILES[name])
        if not path.exists():
            raise CheckpointError(
                f'the weights of {filename} are not there: download {FILES[name]} from {SOURCE} to {path}, or give the '
                f'path of the file as checkpoint={SCHEME + "PATH"!r}'
            )
    with torch.serialization.safe_globals([CONFIG]):
        content = read(path, map_location)
    state_dict = content.get('model', content)
    if 'patch_proj.0.weight' not in state_dict:
        raise CheckpointError(f'{path} has no patch_proj.0.weight, expected a checkpoint of the official code of DAT')
    return convert(state_dict)


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the official code's weights to ours; what no rule knows keeps its name."""
    converted = {}
    for key, value in state_dict.items():
        for pattern, name in RULES:
            key = re.sub(pattern, name, key)
        if not key:
            continue
        if key.endswith('_proj.weight') and value.dim() == 4:
            value = value.flatten(1)  # a 1x1 convolution is a linear layer here
        if key.endswith('offset_proj.weight'):
            value = value.flip(0)  # (y, x) there, (x, y) here
        converted[key] = value
    return converted


def check_fits(model: nn.Module, address: str) -> None:
    """Compare what :func:`load_from_dat` gives with a backbone; weights of stages that it lacks do not count.

    Raises:
        CheckpointError: as there; or a weight is missing, left over or of another shape. The message names the first.
    """
    state_dict, own = load_from_dat(address, 'cpu'), model.state_dict()
    absent = re.compile(rf'(stages|merges)\.[{len(model.stages)}-9]\.')
    state_dict = {key: value for key, value in state_dict.items() if not absent.match(key)}
    expected = {key for key in own if not key.startswith('norms.')}
    wrong = [f'no {key}' for key in sorted(expected - state_dict.keys())]
    wrong += [f'{key}, which the backbone lacks' for key in sorted(state_dict.keys() - expected)]
    wrong += [
        f'{key} of shape {tuple(state_dict[key].shape)}, expected {tuple(own[key].shape)}'
        for key in sorted(expected & state_dict.keys())
        if state_dict[key].shape != own[key].shape
    ]
    if wrong:
        more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
        raise CheckpointError(
            f'init_cfg: {address} does not fit this DAT: it has {wrong[0]}{more}. Is `arch` that of the file, and '
            '`img_size` and `window_size` those of its training (224 and 7, or 384 and 12)?'
        )
