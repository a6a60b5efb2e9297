"""Files that are there as a whole or not at all."""

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

UNFINISHED = '.part'  # suffix of a file that is being written


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file that no reader, and no crash, ever finds half-written.

    The bytes go to a file beside it, onto the disk, and only then under the name, which a previous file keeps until
    then.

    Raises:
        OSError: nothing has changed, and what was written so far is removed.
    """
    path = Path(path)
    part = path.with_name(path.name + UNFINISHED)
    try:
        with open(part, 'wb') as file:
            file.write(data)
            file.flush()
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


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a process left that was killed within :func:`write_atomically`."""
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
