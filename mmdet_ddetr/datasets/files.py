"""Bytes of files: the one place that decides what is opened, and how much is read of it."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from mmengine.fileio import LocalBackend, get_file_backend

from .download import MAX_DOWNLOAD, download, is_web
from .errors import DataError

GIB = 2**30
MAX_BYTES = GIB  # of a picture's file
MAX_ANNOTATIONS = 2  # GiB of an annotation file: parsed, it takes several times as much memory
LIFT = 'MMDET_DDETR_MAX_ANNOTATIONS'  # environment variable: another number of GiB


class TooLargeError(DataError):
    """More bytes than a file of its kind may have."""


def read_file(path: str | Path, max_bytes: int = MAX_BYTES, backend_args: dict | None = None) -> bytes:
    """All bytes of a regular file, or of what a remote backend has.

    Args:
        path: of the file, or an address. Folders, pipes and devices, which may never end, are refused.
        max_bytes: refuse a larger file; of the web, what is larger than ``MAX_DOWNLOAD`` is refused as well, and what
            other backends have is refused once it is read.
        backend_args: of mmengine's file backends; None: the one for the path or address.

    Raises:
        DataError: why it cannot be read, without the path.
    """
    if backend_args is None and is_web(path):
        return b''.join(download(str(path), min(max_bytes, MAX_DOWNLOAD)))
    backend = _backend(path, backend_args)
    if isinstance(backend, LocalBackend):
        return _read_local(path, max_bytes)
    try:
        data = backend.get(str(path))
    except Exception as error:  # noqa: BLE001  of whatever library the backend uses
        raise DataError(f'not readable by {type(backend).__name__}: {type(error).__name__}: {error}') from None
    _check_size(len(data), max_bytes)
    return data


def read_annotations(path: str | Path) -> bytes:
    """All bytes of an annotation file on this machine.

    Raises:
        DataError: it cannot be read or is too large; names it.
    """
    with _named(path):
        return _read_local(path, max_annotation_bytes())


def check_annotations(path: str | Path | None, backend_args: dict | None = None) -> None:
    """Look at an annotation file before somebody else reads it; what is remote or does not exist is left to them.

    Raises:
        DataError: it is no regular file, or too large; names it.
    """
    with _named(path):
        if path and isinstance(_backend(path, backend_args), LocalBackend) and os.path.exists(path):
            _size_of(path, max_annotation_bytes())


def max_annotation_bytes() -> int:
    """What an annotation file may have.

    Raises:
        DataError: the environment variable that sets it is no number.
    """
    text = os.environ.get(LIFT) or str(MAX_ANNOTATIONS)
    try:
        return int(float(text) * GIB)
    except (ValueError, OverflowError):
        raise DataError(f'{LIFT} is {text!r} in the environment, expected a number of GiB') from None


def natural(path: PurePath) -> list:
    """A sorting key by which frame2 comes before frame10."""
    return [[int(part) if part.isdigit() else part for part in re.split(r'(\d{1,18})', p)] for p in path.parts]


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    try:
        yield
    except TooLargeError as error:
        raise DataError(f'{path}: {error}. If you trust it, set {LIFT} to more GiB in the environment') from None
    except DataError as error:
        raise DataError(f'{path}: {error}') from None


def _backend(path: str | Path, backend_args: dict | None):
    try:
        return get_file_backend(path, backend_args=backend_args, enable_singleton=True)
    except (KeyError, ValueError):  # no such prefix, or several
        raise DataError('not readable: this kind of address is not known') from None


def _read_local(path: str | Path, max_bytes: int) -> bytes:
    try:
        size = _size_of(path, max_bytes)
        with open(path, 'rb') as file:
            return file.read(size)  # no more than it says: files of /proc have no size and no end
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError('no such file') from None
    except OSError as error:
        raise DataError(f'not readable: {error.strerror}') from None
    except ValueError:  # NUL, or half of a surrogate pair
        raise DataError('not readable: its name has a character that no file name can have') from None


def _size_of(path: str | Path, max_bytes: int) -> int:
    """Bytes of a regular file, which is not opened: that alone waits for a pipe's writer, or starts a device."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f'{"a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"}, expected a file')
    _check_size(status.st_size, max_bytes)
    return status.st_size


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise TooLargeError(f'{size / GIB:.1f} GiB, expected at most {max_bytes / GIB:g} GiB')
