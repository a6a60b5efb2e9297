"""Files that are there as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import MMLogger

UNFINISHED = '.part'  # suffix of a file that is being written


@contextmanager
def atomically(path: str | Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; afterwards the file is on the disk, and under its own name.

    No reader, and no crash, ever finds it half-written: until then the name belongs to the previous file.

    Raises:
        OSError: nothing has changed, and what was written so far is removed.
    """
    path = Path(path)
    part = path.with_name(path.name + UNFINISHED)
    try:
        yield part
        with open(part, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == 'posix':  # the new name is an entry of the folder, which has to reach the disk as well
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file by :func:`atomically`."""
    with atomically(path) as part:
        part.write_bytes(data)


def write_if_possible(path: str | Path, data: bytes) -> None:
    """:func:`write_atomically` for what a training can do without: a failure is an error in the log, and no more."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        MMLogger.get_current_instance().error(f'{path} COULD NOT BE WRITTEN: {error}')


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a process left that was killed within :func:`atomically`."""
    for part in Path(folder).glob(f'*{UNFINISHED}'):
        part.unlink(missing_ok=True)


@register_backend('mmdet_ddetr.atomic')
class AtomicBackend(LocalBackend):
    """mmengine's backend for local files, writing atomically: ``backend_args=dict(backend='mmdet_ddetr.atomic')``."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)
