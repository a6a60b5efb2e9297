"""The files below a folder, and which label file belongs to which picture."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePath

from ..coco_folder import SPLIT_NAMES
from ..files import natural
from ..image_file import SUFFIXES

ALIASES = {alias: name for name, aliases in SPLIT_NAMES.items() for alias in aliases}
ALIASES.update({f'{alias}2017': name for alias, name in ALIASES.items()}, training='train', testing='test', dev='val')
# folders that only say what lies in them: pictures and labels are paired without them
KINDS = re.compile(r'(images?|imgs?|jpegimages|pictures|photos|labels?|annotations?|annots?|xmls?|obj_\w+_data)')


class Tree:
    """All files below ``root``, links followed, but not below ``skip``, in the order in which a person counts them."""

    def __init__(self, root: Path, skip: Path | None = None):
        self.root = root
        self.files: list[Path] = []
        self.passed_over: list[str] = []  # files that a format was looked for in, and why they are none of it
        seen = {os.path.realpath(skip)} if skip else set()
        for folder, folders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link into what is being walked
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(('.', '__MACOSX'))]
            self.files += [Path(folder, name) for name in names if not name.startswith('.')]
        self.files.sort(key=natural)

    def of(self, *suffixes: str) -> list[Path]:
        return [path for path in self.files if path.suffix.lower() in suffixes]

    @cached_property
    def pictures(self) -> list[Path]:
        return self.of(*SUFFIXES)

    def relative(self, path: Path) -> str:
        """How a message calls a file of the data set."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def spelled(self, path: Path) -> Path:
        """``path`` below ``root`` as the user wrote ``root``, and without ``..``, where it lies there."""
        below = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        if not below.is_absolute() and '..' not in below.parts:
            return path
        real, root = path.resolve(), self.root.resolve()
        return self.root / real.relative_to(root) if real.is_relative_to(root) else path

    def split_of(self, path: Path) -> str:
        """'train', 'val' or 'test' by a folder that the file lies in; '' where none says so."""
        parts = path.relative_to(self.root).parts[:-1] if path.is_relative_to(self.root) else path.parts[:-1]
        return next((ALIASES[part.lower()] for part in reversed(parts) if part.lower() in ALIASES), '')

    def key(self, path: PurePath) -> tuple[str, ...]:
        """What a picture and its label file have in common: folders that mean something, and the stem."""
        parts = path.relative_to(self.root).parts if path.is_relative_to(self.root) else path.parts
        folders = [part.casefold() for part in parts[:-1]]
        return (*(part for part in folders if not KINDS.fullmatch(part)), path.stem.casefold())

    def by_key(self, paths: Iterable[Path]) -> dict[tuple[str, ...], list[Path]]:
        found = defaultdict(list)
        for path in paths:
            found[self.key(path)].append(path)
        return found
