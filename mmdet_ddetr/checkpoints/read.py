"""Files of weights: what is read executes nothing, and what cannot be read is told in a sentence."""

import argparse
import re
import zipfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from .diagnosis import asked_for, kind_of, protocol_of
from .errors import CheckpointError

SAFETENSORS = '.safetensors'
UNPICKLER = 'WeightsUnpickler error: '  # what torch says of it stands behind this

# The official codes save their command line's arguments beside the weights: a mere bag of attributes.
torch.serialization.add_safe_globals([argparse.Namespace])


def read(path: str | Path, map_location='cpu', mmap: bool = False) -> Mapping:
    """Read a ``.safetensors`` file, or what ``torch.save`` wrote, whatever its suffix.

    Args:
        map_location: where the tensors go, see :func:`torch.load`.
        mmap: leave the numbers of the tensors in the file until they are used, where ``torch.save`` wrote an archive.

    Raises:
        CheckpointError: no such file, no checkpoint, one that asks for more than data or has tensors without numbers,
            or a missing ``safetensors``. The message names the file.
    """
    check_exists(path)
    path = Path(path).expanduser()
    if not path.is_file():
        kind = 'a folder' if path.is_dir() else 'not a regular file'
        raise CheckpointError(f'no checkpoint {str(path)!r}: it is {kind}')
    if not path.stat().st_size:
        raise CheckpointError(f'{path} is empty, expected a checkpoint')
    if path.suffix == SAFETENSORS:
        content = _read_safetensors(path, map_location)
    else:
        content = _read_torch(path, map_location, mmap and zipfile.is_zipfile(path))
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, expected a checkpoint')
    check_tensors(content, path)
    return content


def check_exists(source: str | Path | None) -> None:
    """Refuse a path that leads nowhere, before anything that takes time; an address is not tried.

    Raises:
        CheckpointError: there is no such file or folder. The message names those beside it.
    """
    if source is None or '://' in str(source) or Path(source).expanduser().exists():
        return
    folder = Path(source).expanduser().parent
    there = sorted(path.name for path in folder.glob('*.pth')) if folder.is_dir() else []
    near = get_close_matches(Path(source).name, there, cutoff=0.3) or there[-3:]
    hint = f'; in that folder there is {", ".join(near)}' if near else '' if folder.is_dir() else ', nor that folder'
    raise CheckpointError(f'no checkpoint {str(source)!r}{hint}')


def check_sums(path: Path) -> None:
    """Compare the content of an archive of ``torch.save`` with its check sums, which ``torch.load`` does not.

    Raises:
        CheckpointError: it is damaged. The message names the file.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # noqa: BLE001  of headers that are damaged, any
        raise CheckpointError(f'{path} is damaged: {error}') from None
    if damaged is not None:
        raise CheckpointError(f'{path} is damaged: {damaged} in it has not the check sum that it was written with')


def _read_torch(path: Path, map_location, mmap: bool) -> object:
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from None
    except Exception as error:  # noqa: BLE001  a file that was written to harm may raise anything
        raise CheckpointError(f'{path} {_what_is_wrong(path, error)}') from None


def _what_is_wrong(path: Path, error: Exception) -> str:
    names = asked_for(path)
    if any(name.startswith('__torch__.') for name in names):
        return 'is refused: it is a program of TorchScript, expected weights'
    if names:
        return (
            f'is refused: it asks for {", ".join(names[:5])}, while weights are made of tensors and plain values. '
            'Loading it could run any program'
        )
    kind = kind_of(path)
    return f'cannot be read as a checkpoint of PyTorch: {f"it is {kind}" if kind else _reason(path, error)}'


def _reason(path: Path, error: Exception) -> str:
    text = str(error).partition(UNPICKLER)[2] or str(error)
    protocol = protocol_of(path)
    if protocol is None and not zipfile.is_zipfile(path):
        return 'it holds nothing that torch.save writes'
    if protocol in (3, 4, 5) and 'Unsupported operand' in text:
        return 'it was saved with another pickle_protocol than 2, which torch reads by running it only'
    return next((line for line in text.splitlines() if line.strip()), type(error).__name__)


def _read_safetensors(path: Path, map_location) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise CheckpointError(f'{path} needs a package to read it: pip install safetensors') from None
    try:
        return load_file(path, device=str(map_location or 'cpu'))
    except Exception as error:  # noqa: BLE001  as above
        kind = kind_of(path)
        reason = f'it is {kind}' if kind and SAFETENSORS not in kind else str(error)
        raise CheckpointError(f'{path} cannot be read as safetensors: {reason}') from None


def check_tensors(content: Mapping, path: str | Path) -> None:
    """Refuse tensors from which a model would get no numbers, or only a part of them.

    mmengine leaves out of a state_dict what does not fit, and the model keeps its random weights.
    """
    weights = content.get('state_dict')
    for key, value in weights.items() if isinstance(weights, Mapping) else ():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise CheckpointError(
                f'{path} has a {type(value).__name__} as {key!r} in its state_dict, expected a tensor'
            )
    rest, seen = [('', content)], set()
    while rest:
        name, value = rest.pop()
        if isinstance(value, Tensor):
            if wrong := _lack(value):
                raise CheckpointError(f'{path} is refused: {name} {wrong}')
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            rest.extend((f'{name}.{key}' if name else str(key), item) for key, item in items)


def _lack(tensor: Tensor) -> str | None:
    if tensor.is_meta:
        return 'is a tensor on the device "meta": it has a shape, but no numbers'
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f'is a tensor of layout {re.sub("^torch.", "", str(tensor.layout))}, expected a dense one'
    if tensor.is_quantized:
        return f'is a quantised tensor ({tensor.dtype}), expected floating point numbers'
    return None
