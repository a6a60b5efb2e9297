"""Files that are there as a whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import MMLogger

UNFINISHED = '.part'  # suffix of a file that is being written


@contextmanager
def atomically(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; afterwards the file is on the disk, and under its own name.

    No reader, and no crash, ever finds it half-written: until then the name belongs to the previous file.

    Args:
        sync: wait for the disk; without, a crash of the system may still take it.

    Raises:
        OSError: nothing has changed, and what was written so far is removed.
    """
    path = Path(path)
    part = _part_of(path)
    try:
        with named(path, part):
            yield part
        if sync:
            with open(part, 'rb+') as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync and os.name == 'posix':  # the new name is an entry of the folder, which has to reach the disk as well
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def named(path: str | Path, part: Path | None = None) -> Iterator[None]:
    """An error of the system that names no file, as of a full disk, or ``part``, names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, part and str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_atomically(path: str | Path, data: bytes, sync: bool = True) -> None:
    """Write a file by :func:`atomically`."""
    with atomically(path, sync) as part:
        part.write_bytes(data)


class GrowingFile:
    """A text file that grows, and takes its name when it is closed: :func:`atomically`, without a block.

    Args:
        path: of the file; nothing is there before the first ``write``.
        options: of ``open``.

    Raises:
        IsADirectoryError: the path is a folder, which would be found out at the end only.
    """

    def __init__(self, path: str | Path, **options):
        self._path, self._options, self._file = Path(path), options, None
        self._part = _part_of(self._path)
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))

    @property
    def begun(self) -> bool:
        return self._file is not None

    def write(self, text: str) -> None:
        with self._or_nothing():
            if self._file is None:
                self._file = open(self._part, 'w', **self._options)  # noqa: SIM115  closed by close()
            self._file.write(text)

    def close(self, whole: bool = True) -> Path | None:
        """Take the name, where anything was written; else the previous file stays.

        Args:
            whole: all is written; else the previous file stays, and what is written gets :func:`unfinished_name`.

        Returns:
            The file; None: nothing was written.
        """
        if self._file is None:
            return None
        path = self._path if whole else unfinished_name(self._path)
        with self._or_nothing():
            self._file.close()
            os.replace(self._part, path)
        self._file = None
        return path

    @contextmanager
    def _or_nothing(self) -> Iterator[None]:
        """Remove what is written after an error, as of a full disk: it may end anywhere."""
        try:
            with named(self._path, self._part):
                yield
        except OSError:
            file, self._file = self._file, None
            with suppress(OSError):
                if file is not None:
                    file.close()
            self._part.unlink(missing_ok=True)
            raise


def _part_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + UNFINISHED)


def unfinished_name(path: Path) -> Path:
    """Of a file that ends before its time: ``results.csv`` is called ``results_unfinished.csv``."""
    stem, dot, suffix = path.name.partition('.')
    return path.with_name(f'{stem}_unfinished{dot}{suffix}')


def make_folder(path: str | Path, later: bool = False) -> None:
    """Make a folder, and look whether files can be written there, before anything that takes time.

    Args:
        later: look only, at the folder that is there of those above it.

    Raises:
        OSError: it cannot be; says why.
    """
    path = Path(path)
    try:
        there = next(folder for folder in (path, *path.parents, Path.cwd()) if folder.exists())
        if there.is_dir():
            if not later:
                path.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=there if later else path):
                return
    except OSError as error:
        raise type(error)(f'nothing can be written to {str(path)!r}: {error.strerror}') from None
    raise NotADirectoryError(f'{str(there)!r} is a file, expected a folder')


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
