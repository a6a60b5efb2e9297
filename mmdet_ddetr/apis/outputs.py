"""Names for the files that are written about images."""

import os
import re
from collections.abc import Collection
from itertools import chain, count
from pathlib import Path

from .inputs import file_of, is_url

MAX_NAME = 200  # bytes: file systems take 255, and what is put before and behind takes some
WRITTEN = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm'}  # suffixes that OpenCV writes in colour


class Names:
    """A name in each folder for each image: always the same for the same file, never that of another."""

    def __init__(self):
        self._names = {}  # folder: ({file: name}, {every name, case folded})

    def of(self, path: str | None, folder: str) -> str:
        """The name of what is written about an image, without suffix.

        Args:
            path: file or URL of the image; None: it has none and is numbered.
            folder: where it is written.
        """
        names, taken = self._names.setdefault(os.path.abspath(folder), ({}, set()))
        if path is None:
            name = next(name for name in (f'{n:08d}' for n in count(len(taken))) if name not in taken)
        else:
            path = path if is_url(path) else os.path.abspath(path)
            if path in names:
                return names[path]
            name = names[path] = distinct_name(file_of(path), taken)
        taken.add(name.casefold())
        return name


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
    return name.encode(errors='replace')[-MAX_NAME:].decode(errors='ignore')
