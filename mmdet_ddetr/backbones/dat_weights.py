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
    if any('local_perception_units' in key for key in state_dict):
        raise CheckpointError(f'{path} is of DAT++, another network; expected one of the files of DAT, from {SOURCE}')
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


def settings_of(state_dict: dict[str, Tensor], archs: dict[str, dict]) -> dict:
    """Arguments of a :class:`DAT` as its weights tell them: ``arch``, ``img_size`` and ``window_size``.

    Args:
        state_dict: of :class:`DAT`, whole or without its last stages.
        archs: those with a name. Of another one, ``arch`` has the ``embed_dims`` and ``depths``.
    """
    blocks, settings = {}, {}
    for key, value in state_dict.items():
        if match := re.match(r'stages\.(\d)\.(\d+)\.', key):
            stage = int(match[1])
            blocks[stage] = max(blocks.get(stage, 0), int(match[2]) + 1)
            if key.endswith('position_bias_table') and value.dim() == 2:  # [(2 * window - 1)^2, M]
                settings['window_size'] = int(len(value) ** 0.5 + 1) // 2
            elif key.endswith('position_bias_table'):  # [M, 2H - 1, 2W - 1], of a map of 1 / (4 * 2^stage)
                H, W = ((n + 1) // 2 * 4 * 2**stage for n in value.shape[1:])
                settings['img_size'] = H if H == W else (H, W)
    arch = dict(
        embed_dims=state_dict['merges.0.proj.weight'].shape[0], depths=tuple(blocks[stage] for stage in sorted(blocks))
    )
    for name, known in archs.items():
        if known['embed_dims'] == arch['embed_dims'] and known['depths'][: len(blocks)] == arch['depths']:
            arch = name
            break
    return dict(arch=arch, **settings)


def check_fits(model: nn.Module, address: str, archs: dict[str, dict]) -> None:
    """Compare what :func:`load_from_dat` gives with a backbone; weights of stages that it lacks do not count.

    Raises:
        CheckpointError: as there; or the file is of another size, or a weight is missing, left over or of another
            shape. The message says which size, or names the first weight.
    """
    state_dict, own = load_from_dat(address, 'cpu'), model.state_dict()
    absent = re.compile(rf'(stages|merges)\.[{len(model.stages)}-9]\.')
    state_dict = {key: value for key, value in state_dict.items() if not absent.match(key)}
    theirs, ours = (settings_of(weights, archs) for weights in (state_dict, own))
    differing = [name for name in ours if theirs.get(name) != ours[name]]
    if differing:
        arguments = [', '.join(f'{name}={values.get(name)!r}' for name in differing) for values in (theirs, ours)]
        raise CheckpointError(
            f'init_cfg: {address} is of a DAT with {arguments[0]}, this one has {arguments[1]}; set those of the file, '
            'or take the file of this one'
        )
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
        raise CheckpointError(f'init_cfg: {address} does not fit this DAT: it has {wrong[0]}{more}')
