"""Find images whose names are written otherwise than on the disk: as addresses, encoded, with backslashes."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .records import labelled_in

RULE = 'file_name that is not there as it is written'
REMEDY = 'the file of this name was found; its path is in a copy'


def misspelt_names(image_dir: str | Path, entries: Iterable[dict]) -> dict[str, str]:
    """The file below ``image_dir`` that a ``file_name`` means which is not there as it is written.

    Label Studio writes addresses, Windows backslashes. Only files below ``image_dir`` are taken, and no address is
    opened. Folders of a file must be in the name as well, so that a missing image of train is not taken from ``val/``;
    where all lie in one folder, nothing tells them apart. A name that fits several files means none, and no file is
    given to two names.

    Args:
        image_dir: folder that the names are relative to.
        entries: images of a COCO file. Those that were converted from another format are left as they are.

    Returns:
        Path relative to ``image_dir`` by the name as it is written.
    """
    written = [entry.get('file_name') for entry in entries if not labelled_in(entry)]
    names = dict.fromkeys(name for name in written if isinstance(name, str))
    missing = {name: None for name in names if not os.path.exists(os.path.join(image_dir, name))}
    if not missing:
        return {}
    files = _Files(image_dir)
    found = {name: path for name in missing if (path := files.find(name))}
    taken = Counter(found.values())
    taken.update(os.path.relpath(os.path.join(image_dir, name), image_dir) for name in names.keys() - missing.keys())
    return {name: path for name, path in found.items() if taken[path] == 1}


class _Files:
    """The files below a folder by their names; links to folders are not followed."""

    def __init__(self, root: str | Path):
        self.name_of_root = os.path.basename(os.path.abspath(root))
        self.by_name = {_exact: defaultdict(list), _folded: defaultdict(list)}
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), root)
                for spelling, by_name in self.by_name.items():
                    by_name[spelling(name)].append(path)

    def find(self, name: str) -> str | None:
        for spelling in self.by_name:
            for reading in _readings(name):
                if found := self._find(reading, spelling):
                    return found
        return None

    def _find(self, reading: str, spelling: Callable[[str], str]) -> str | None:
        """The file with this path, or whose path is the end of it, if no file of this name agrees for as long."""
        parts = [spelling(part) for part in reading.replace('\\', '/').split('/') if part not in ('', '.')]
        agreeing = defaultdict(list)
        for path in self.by_name[spelling].get(parts[-1] if parts else '', ()):
            own = [spelling(part) for part in path.split(os.sep)]
            if own == parts:
                return path
            length = _common_end([spelling(self.name_of_root), *own], parts)
            agreeing[length].append((path, length >= len(own)))
        if not agreeing:
            return None
        (path, whole), *others = agreeing[max(agreeing)]
        return path if whole and not others else None


def _readings(name: str) -> Iterator[str]:
    """What a name can mean: itself, without percent-encoding, the path of an address, or a value of its query."""
    yield name
    yield unquote(name)
    try:
        address = urlsplit(name.replace('\\', '/'))
    except ValueError:  # such as http://[
        return
    yield unquote(address.path)
    for item in address.query.split('&'):
        yield unquote(item.partition('=')[2])


def _common_end(one: list[str], other: list[str]) -> int:
    """How many parts agree, from the last on."""
    pairs = list(zip(reversed(one), reversed(other)))
    return next((count for count, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _exact(text: str) -> str:
    return text


def _folded(text: str) -> str:
    """Without regard to case and to how accents are composed."""
    return unicodedata.normalize('NFC', text).casefold()
