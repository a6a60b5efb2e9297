"""Files of the Hugging Face hub: ``hf://owner/name`` and ``hf://owner/name@revision``."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError

import torch
from mmengine.dist import barrier, get_dist_info

from .errors import CheckpointError
from .files import CONFIG, HUB_FILES

SCHEME = 'hf://'
ADDRESS = re.compile(r'hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>\S+))?')


def download(address: str) -> tuple[Path, Path | None]:
    """Bring a model of the hub onto this machine, unless it is there: what is in the cache is taken as it is.

    ``huggingface_hub`` does it where it is installed, with its cache and its access to private models; else plain
    HTTPS. ``HF_HUB_CACHE``, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` count for both. In a distributed run
    the first process goes first.

    Returns:
        The weights and, if there is one, the ``config.json``.

    Raises:
        CheckpointError: no address of the hub, no such model or file, or no network.
    """
    parts = ADDRESS.fullmatch(address)
    if not parts:
        raise CheckpointError(f'checkpoint: got {address!r}, expected hf://owner/name or hf://owner/name@revision')
    try:
        import huggingface_hub  # noqa: F401

        find, fetch = _find_with_huggingface_hub, _fetch_with_huggingface_hub
    except ModuleNotFoundError:
        find, fetch = _find, _fetch_with_https
    return first_process_first(lambda: _weights_and_config(find, fetch, parts['repo'], parts['revision'] or 'main'))


def cache_folder() -> Path:
    """Where the hub's files are kept, by the rules of ``huggingface_hub``."""
    home = os.environ.get('HF_HOME') or Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'huggingface')
    return Path(os.environ.get('HF_HUB_CACHE') or Path(home, 'hub')).expanduser()


class _Unreachable(Exception):
    """The hub does not answer, or is not to be asked."""


def _weights_and_config(find: Callable, fetch: Callable, repo: str, revision: str) -> tuple[Path, Path | None]:
    """``find`` looks into the cache, ``fetch`` downloads; both get a repository, name and revision."""
    try:
        for get in (find, fetch):
            for name in HUB_FILES:
                if weights := get(repo, name, revision):
                    return weights, _config(find, fetch, repo, revision)
    except _Unreachable as error:
        raise CheckpointError(
            f'{SCHEME}{repo} is not in {cache_folder()} and cannot be downloaded ({error}). On a machine with '
            f'network, download {HUB_FILES[0]} and {CONFIG}, and give their folder instead'
        ) from None
    raise CheckpointError(f'{SCHEME}{repo}@{revision} has neither {" nor ".join(HUB_FILES)}')


def _config(find: Callable, fetch: Callable, repo: str, revision: str) -> Path | None:
    try:
        return find(repo, CONFIG, revision) or fetch(repo, CONFIG, revision)
    except _Unreachable:
        return None


def _find_with_huggingface_hub(repo: str, name: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name, cache_dir=cache_folder(), revision=revision)
    return Path(path) if isinstance(path, str) else None  # there is a value for "the model has no such file", too


def _fetch_with_huggingface_hub(repo: str, name: str, revision: str) -> Path | None:
    """A file's path in the cache; None if the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            hf_hub_download(
                repo, name, revision=revision, cache_dir=cache_folder(), endpoint=os.environ.get('HF_ENDPOINT')
            )
        )
    except LocalEntryNotFoundError as error:
        raise _Unreachable(str(error).splitlines()[0]) from None
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise CheckpointError(f'{SCHEME}{repo}@{revision}: {_first_sentence(error)}') from None


def _place(repo: str, name: str, revision: str) -> Path:
    return cache_folder() / 'mmdet_ddetr' / f'{repo.replace("/", "--")}@{revision.replace("/", "--")}' / name


def _find(repo: str, name: str, revision: str) -> Path | None:
    path = _place(repo, name, revision)
    return path if path.is_file() else None


def _fetch_with_https(repo: str, name: str, revision: str) -> Path | None:
    if os.environ.get('HF_HUB_OFFLINE', '').upper() in ('1', 'ON', 'YES', 'TRUE'):
        raise _Unreachable('HF_HUB_OFFLINE is set')
    url = f'{os.environ.get("HF_ENDPOINT", "https://huggingface.co")}/{repo}/resolve/{revision}/{name}'
    path = _place(repo, name, revision)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except HTTPError as error:
        if error.code == 404:
            return None
        if error.code in (401, 403):
            raise CheckpointError(
                f'{SCHEME}{repo}: no such model, or a private one, which needs pip install huggingface_hub'
            ) from None
        raise _Unreachable(error) from None
    except OSError as error:  # no network
        raise _Unreachable(getattr(error, 'reason', error)) from None
    return path


def _first_sentence(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def first_process_first(function: Callable):
    """Let one process fill the cache, then the others read it."""
    rank, world_size = get_dist_info()
    try:
        result = function() if rank == 0 else None
    finally:
        if world_size > 1:
            barrier()
    return result if rank == 0 else function()
