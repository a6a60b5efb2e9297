"""Where checkpoints come from: mmengine's ``load_from``, ``resume`` and ``Pretrained`` read every address by this file.

mmengine's own loaders unpickle what they download, and let raw errors through.
"""

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlparse

import mmengine
import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as theirs

from .errors import CheckpointError
from .hub import SCHEME, first_process_first
from .load import load_checkpoint
from .read import check_tensors, read
from .report import ConversionReport

HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')  # of a file's content, in the names that torchvision and mmdet publish
LINKS = 'torchvision_0.12.json'  # in mmengine: addresses of torchvision's weights by name


def _load_quietly(cls, filename, map_location=None, logger='current'):
    """mmengine's, which prints the name of its loader in every run; the Runner names the file in its log anyway."""
    return cls._get_checkpoint_loader(filename)(filename, map_location)


CheckpointLoader.load_checkpoint = classmethod(_load_quietly)


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename, map_location=None):
    """A file of ``torch.save`` as it is, or a folder with the files of the hub, converted."""
    if '://' in filename:
        raise CheckpointError(f'no checkpoint {filename!r}: this kind of address is not known')
    return (load_from_huggingface if Path(filename).expanduser().is_dir() else read)(filename, map_location)


@CheckpointLoader.register_scheme(prefixes=[SCHEME, r'(?!\w+://).*\.safetensors$'])
def load_from_huggingface(filename, map_location=None):
    """``hf://owner/name``, a folder with its files, or a ``.safetensors`` file: converted on the fly."""
    report = ConversionReport()
    checkpoint = load_checkpoint(filename, map_location or 'cpu', report=report)
    print_log(f'Converted {filename}:\n{report}', logger='current')
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=['http://', 'https://'], force=True)
def load_from_http(filename, map_location=None):
    """A file that is downloaded once and kept in torch's cache (``TORCH_HOME``)."""
    path, is_ours = first_process_first(lambda: _download(filename))
    try:
        return read(path, map_location)
    except CheckpointError as error:
        if is_ours:
            path.unlink(missing_ok=True)  # cut off, or a page that says no: the next try downloads it again
        raise CheckpointError(f'{filename}: {error}') from None


def _download(url: str) -> tuple[Path, bool]:
    """Where the file is now, and whether under a name of this address alone.

    A file is shared with torchvision and mmengine under its own name only where that has the hash of its content:
    ``epoch_12.pth`` of one address would be taken for that of another, and a stranger's for torchvision's.
    """
    name = unquote(Path(urlparse(url).path).name) or 'checkpoint'
    cache = Path(torch.hub.get_dir(), 'checkpoints')
    shared, own = cache / name, cache / 'by-address' / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    hashed = HASH.search(name)
    if hashed and shared.is_file():
        return shared, False
    if not own.is_file():
        own.parent.mkdir(parents=True, exist_ok=True)
        try:
            print_log(f'Downloading {url} to {own}', logger='current')
            torch.hub.download_url_to_file(url, str(own), progress=sys.stderr.isatty())
        except (OSError, ValueError) as error:
            raise CheckpointError(f'{url} cannot be downloaded: {str(error).strip("<>")}') from None
        if hashed and _sha256(own).startswith(hashed[1]):
            os.replace(own, shared)
            return shared, False
    return own, True


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@CheckpointLoader.register_scheme(prefixes=['modelzoo://', 'torchvision://'], force=True)
def load_from_torchvision(filename, map_location=None):
    """Weights of torchvision by name, which need no torchvision where mmengine knows their address."""
    name = filename.partition('://')[2]
    links = mmengine.load(Path(mmengine.__file__).with_name('hub') / LINKS)
    if name not in links:
        try:
            links = theirs.get_torchvision_models()
        except ImportError:
            raise CheckpointError(
                f'{filename} needs torchvision to find its address: pip install torchvision'
            ) from None
    return load_from_http(_look_up(links, name, filename), map_location)


@CheckpointLoader.register_scheme(prefixes=['open-mmlab://', 'openmmlab://'], force=True)
def load_from_openmmlab(filename, map_location=None):
    """Weights of OpenMMLab by name."""
    name = filename.partition('://')[2]
    link = _look_up(theirs.get_external_models(), theirs.get_deprecated_model_names().get(name, name), filename)
    if link.startswith(('http://', 'https://')):
        return load_from_http(link, map_location)
    return read(Path(theirs._get_mmengine_home(), link), map_location)


@CheckpointLoader.register_scheme(prefixes='mmcls://', force=True)
def load_from_mmcls(filename, map_location=None):
    """A classifier's backbone by name."""
    link = _look_up(theirs.get_mmcls_models(), filename.partition('://')[2], filename)
    return theirs._process_mmcls_checkpoint(load_from_http(link, map_location))


def _look_up(links: Mapping[str, str], name: str, filename: str) -> str:
    if name not in links:
        raise CheckpointError(f'no checkpoint {filename!r}: expected one of {", ".join(sorted(links)[:5])}, ...')
    return links[name]


def _checked(loader: Callable) -> Callable:
    """One of mmengine's own loaders, whose content is looked at as that of any other."""

    @functools.wraps(loader)
    def load_checked(filename, map_location=None):
        try:
            content = loader(filename, map_location)
        except Exception as error:
            raise CheckpointError(f'{filename} cannot be loaded: {error}') from error
        check_tensors(content, filename)
        return content

    return load_checked


for _prefix, _loader in list(CheckpointLoader._schemes.items()):  # pavi, s3 and petrel
    if _loader.__module__ == theirs.__name__:
        CheckpointLoader.register_scheme(_prefix, _checked(_loader), force=True)
