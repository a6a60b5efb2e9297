"""The files that are written about images and videos, and their names."""

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from itertools import chain, count
from pathlib import Path

import numpy as np

from ..datasets.image_file import JPEG_START
from ..files import unfinished_name
from .inputs import file_of, is_url, known_files
from .video import Clip
from .video_file import MARK, VideoFile

MAX_NAME = 200  # bytes: file systems take 255, and what is put before and behind takes some
WRITTEN = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm'}  # suffixes that OpenCV writes in colour
JFIF = JPEG_START + b'\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0'  # how OpenCV begins a JPEG
MARKED_JPEG = JFIF + b'\xff\xfe\0\rmmdet_ddetr'  # with a comment, so that it is known to be written here
STARTS = {  # of what is written here about one file; what is written about all has its own
    '.json': (b'{\n "image": ',),
    '.jsonl': (b'{"frame": ',),
    '.jpg': (MARKED_JPEG,),
}
ENDS = {'.mp4': MARK}


class Names:
    """A name in each folder for each image: always the same for the same file, never that of another."""

    def __init__(self):
        self._names = {}  # folder: ({file: name}, {every name, case folded})

    def reserve(self, name: str, folder: str) -> None:
        """Give a name to no image."""
        self._of_folder(folder)[1].add(name.casefold())

    def of(self, path: str | None, folder: str) -> str:
        """The name of what is written about an image, without suffix.

        Args:
            path: file or URL of the image; None: it has none and is numbered.
            folder: where it is written.
        """
        names, taken = self._of_folder(folder)
        if path is None:
            name = next(name for name in (f'{n:08d}' for n in count(len(taken))) if name not in taken)
        else:
            path = path if is_url(path) else os.path.abspath(path)
            if path in names:
                return names[path]
            name = names[path] = distinct_name(file_of(path), taken)
        taken.add(name.casefold())
        return name

    def _of_folder(self, folder):
        return self._names.setdefault(os.path.abspath(folder), ({}, set()))


def distinct_name(path: str | Path, taken: Collection[str]) -> str:
    """A name, without suffix, for what is written about a file: its stem, after its folders where that is taken.

    Args:
        path: of the file; ``cam2/0001.jpg`` is called ``0001`` or, if that is taken, ``cam2_0001``.
        taken: names, case folded, that it must differ from, by more than upper and lower case.
    """
    *folders, stem = (part for part in Path(path).with_suffix('').parts if part not in ('..', '/'))
    candidates = chain(
        ('_'.join([*folders[len(folders) - n :], stem]) for n in range(len(folders) + 1)),
        (f'{stem}_{n}' for n in count(2)),
    )
    return next(name for name in map(_portable, candidates) if name.casefold() not in taken)


def _portable(name: str) -> str:
    """Without what some file system refuses."""
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', '_', name)
    name = name.encode(errors='replace').replace(b'?', b'_')  # where a byte is no UTF-8
    return name[-MAX_NAME:].decode(errors='ignore')


class Sources:
    """The files that are looked at: what is written takes the place of none, by whichever path it leads there."""

    def __init__(self):
        self._files = set()

    def add(self, path: str) -> None:
        """Another one; an address or camera is no file."""
        self._files.add(_identity(path))

    def check(self, path: str | Path) -> None:
        """Look at a path before something is written there.

        Raises:
            FileExistsError: it is one of the files.
        """
        if (found := _identity(path)) and found in self._files:
            raise FileExistsError(f'{path} is one of the sources and would be replaced; take another folder')

    def check_beside(self, path: str | Path, starts: Sequence[bytes] | None = None) -> None:
        """As ``check``, in a folder of the user's own files: of those, only what was written here is replaced.

        Args:
            starts: one of them begins each such file that was written here; None: those of the suffix.

        Raises:
            FileExistsError: it is one of the files, or a picture, a video, labels, or another table.
        """
        self.check(path)
        suffix = Path(path).suffix
        starts, end = starts or STARTS.get(suffix, (b'',)), ENDS.get(suffix, b'')
        if _identity(path) and not _is_like(path, starts, end):
            raise FileExistsError(f'{path} is there, beside the sources, and would be replaced; take another folder')


def sources_of(
    inputs,
    names: Names,
    folder: str | Path,
    suffixes_of: Callable[[str, bool], Sequence[str]],
    inner: str = '',
    for_all: Sequence[type] = (),
) -> Sources:
    """The files among ``inputs``, as far as they are known before an iterator is read.

    Args:
        inputs: the inferencer's.
        names, folder: of what is written about them. No name is given away: what cannot be read gets none in the end.
        suffixes_of: of the files that are written about a file, given its path and whether it is a video.
        inner: folder in ``folder`` that they are written to.
        for_all: what is written there about all files: classes with a ``NAME`` and ``STARTS``.

    Raises:
        FileExistsError: one of the files, or labels beside them, would be replaced.
    """
    sources, files, target = Sources(), known_files(inputs), Path(folder, inner)
    for path, _ in files:
        sources.add(path)
    where = _identity(target)
    if where and any(_identity(os.path.dirname(os.path.realpath(path))) == where for path, _ in files):
        names = deepcopy(names)
        for path, is_video in files:
            name = names.of(path, folder)
            for suffix in suffixes_of(path, is_video):
                sources.check_beside(target / (name + suffix))
        for table in for_all:
            for path in (target / table.NAME, unfinished_name(target / table.NAME)):
                sources.check_beside(path, table.STARTS)
    return sources


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Equal for two paths of one file, links among them; None: no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _is_like(path: str | Path, starts: Sequence[bytes], end: bytes) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, 'rb') as file:
        start = file.read(max(map(len, starts)))
        file.seek(-min(len(end), os.path.getsize(path)), os.SEEK_END)
        return start.startswith(tuple(starts)) and file.read() == end


@contextmanager
def finishing(close: Callable[[bool], None]) -> Iterator[None]:
    """Close files after a block, also at Ctrl-C, which is the usual end of a camera.

    Args:
        close: told whether the files are whole: they are not after an error.
    """
    whole = True
    try:
        yield
    except Exception:
        whole = False
        raise
    finally:
        with suppress(*[] if whole else [OSError]):  # a full disk is no news any more
            close(whole)


class ClipFiles:
    """What is being written about a video or camera: an annotated video, and a line of JSON for each frame.

    The files of one clip at a time are open. A line is on the disk when it is written, a video when it is closed.
    """

    def __init__(self):
        self._clip = self._lines = self._video = None

    def note(self, path: str | Path, clip: Clip, record: dict) -> None:
        """Append a line to the file of a clip."""
        self._turn_to(clip)
        if self._lines is None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._lines = open(path, 'w', encoding='utf-8', buffering=1)  # noqa: SIM115  closed by close()
        self._lines.write(json.dumps(record) + '\n')

    def draw(self, path: str | Path, clip: Clip, frame: np.ndarray, fps: float) -> None:
        """Append a frame, BGR [H, W, 3], to the annotated video of a clip."""
        self._turn_to(clip)
        if self._video is None:
            self._video = VideoFile(path, fps, frame.shape[1::-1])
        self._video.write(frame)

    def close(self) -> None:
        lines, video = self._lines, self._video
        self._clip = self._lines = self._video = None
        if lines is not None:
            lines.close()
        if video is not None:
            video.close()

    def _turn_to(self, clip: Clip) -> None:
        if clip is not self._clip:
            self.close()
            self._clip = clip
