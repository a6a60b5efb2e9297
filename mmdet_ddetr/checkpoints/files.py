"""Checkpoint files: what is read executes nothing, what is written is there as a whole or not at all."""

import argparse
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from mmdet_ddetr.files import write_atomically

from .conversion import convert
from .errors import CheckpointError
from .huggingface_folder import make_configs
from .layouts import NATIVE

HUB_FILES = ('model.safetensors', 'pytorch_model.bin')  # weights in a folder of the hub, the best first
CONFIG = 'config.json'
PREPROCESSOR_CONFIG = 'preprocessor_config.json'

# The official codes save their command line's arguments beside the weights: a mere bag of attributes.
torch.serialization.add_safe_globals([argparse.Namespace])


def read(path: Path, map_location='cpu') -> Mapping:
    """Read a ``.safetensors`` file, or what ``torch.save`` wrote, whatever its suffix.

    Raises:
        CheckpointError: no such file, no checkpoint, one that asks for more than data, or a missing ``safetensors``.
    """
    if not path.is_file():
        raise CheckpointError(f'no checkpoint {str(path)!r}')
    read_content = _read_safetensors if path.suffix == '.safetensors' else _read_torch
    content = read_content(path, map_location)
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, expected a checkpoint')
    return content


def _read_torch(path: Path, map_location) -> object:
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        if asked := re.search(r'GLOBAL (\S+) was not an allowed global', str(error)):
            raise CheckpointError(
                f'{path} is refused: it asks for {asked[1]}, while weights are made of tensors and plain values. '
                'Loading it could run any program'
            ) from None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f'{path} cannot be read as a checkpoint of PyTorch: {reason[-1]}') from None


def _read_safetensors(path: Path, map_location) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise CheckpointError(f'{path} needs a package to read it: pip install safetensors') from None
    try:
        return load_file(path, device=str(map_location or 'cpu'))
    except SafetensorError as error:
        raise CheckpointError(f'{path} cannot be read as safetensors: {error}') from None


def find_weights(folder: Path) -> Path:
    """The weights in a folder as the hub has them."""
    for name in HUB_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f'{folder} has neither {" nor ".join(HUB_FILES)}')


def read_class_names(config: Path) -> list[str] | None:
    """The classes in a ``config.json`` of the hub, by index; None if they have no names of their own."""
    labels = json.loads(config.read_text()).get('id2label') or {}
    names = [labels.get(str(i)) for i in range(len(labels))]
    if not names or None in names or all(name == f'LABEL_{i}' for i, name in enumerate(names)):
        return None
    return names


def write(checkpoint: dict, path: Path, layout: str) -> None:
    """Write a converted checkpoint in the form that the code base of its layout reads.

    Args:
        checkpoint: ``state_dict`` and ``meta``.
        path: file; for the Hugging Face hub a folder, which gets ``model.safetensors`` and its configs.
        layout: of ``state_dict``.

    Raises:
        CheckpointError: a model that ``transformers`` does not have, or a missing ``safetensors``.
    """
    if layout == 'huggingface':
        _write_folder(checkpoint, path)
        return
    buffer = io.BytesIO()
    torch.save(checkpoint if layout == NATIVE else {'model': checkpoint['state_dict']}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def _write_folder(checkpoint: dict, folder: Path) -> None:
    try:
        from safetensors.torch import save
    except ModuleNotFoundError:
        raise CheckpointError(f'{folder} needs a package to write it: pip install safetensors') from None
    state_dict = checkpoint['state_dict']
    config, preprocessor = make_configs(convert(state_dict, 'huggingface', classes='keep'), checkpoint['meta'])
    # tensors must not share memory there; the metadata is what transformers asks for
    weights = save({key: value.clone() for key, value in state_dict.items()}, metadata={'format': 'pt'})
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((CONFIG, config), (PREPROCESSOR_CONFIG, preprocessor)):
        write_atomically(folder / name, json.dumps(content, indent=2).encode())
    write_atomically(folder / HUB_FILES[0], weights)
