"""Names for the files that are written about images."""

import os
from itertools import count

from .inputs import file_of, is_url
from .pictures import distinct_name

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
            name = distinct_name(file_of(path), ())
            if name.casefold() in taken:
                name = distinct_name(file_of(path), taken)
            names[path] = name
        taken.add(name.casefold())
        return name
