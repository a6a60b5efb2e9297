"""The files of a checkpoint: which there are, and how they are written, as a whole or not at all."""

import io
import json
from pathlib import Path

import torch

from mmdet_ddetr.files import write_atomically

from .conversion import convert
from .errors import CheckpointError
from .huggingface_folder import make_configs
from .layouts import NATIVE

HUB_FILES = ('model.safetensors', 'pytorch_model.bin')  # weights in a folder of the hub, the best first
CONFIG = 'config.json'
PREPROCESSOR_CONFIG = 'preprocessor_config.json'


def find_weights(folder: Path) -> Path:
    """The weights in a folder as the hub has them."""
    for name in HUB_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f'{folder} has neither {" nor ".join(HUB_FILES)}')


def read_class_names(config: Path) -> list[str] | None:
    """The classes in a ``config.json`` of the hub, by index; None if they have no names of their own.

    Raises:
        CheckpointError: it is not what ``transformers`` writes.
    """
    try:
        content = json.loads(config.read_text(encoding='utf-8'))
        labels = content.get('id2label') or {} if isinstance(content, dict) else None
    except (OSError, ValueError, RecursionError) as error:  # a RecursionError: thousands of brackets
        raise CheckpointError(f'{config} cannot be read as JSON: {error}') from None
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels.values()):
        raise CheckpointError(f'{config}: id2label should name the classes, like {{"0": "person"}}')
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
    torch.save(checkpoint if layout in (NATIVE, 'mmdet') else {'model': checkpoint['state_dict']}, buffer)
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
