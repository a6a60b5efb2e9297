"""What may be given as images: files, folders, patterns, addresses, videos, cameras, arrays, and streams of these."""

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from PIL import Image

from ..datasets import DataError, read_image
from ..datasets.image_file import SUFFIXES, check_aspect
from ..datasets.pixels import bgr_of_array, bgr_of_pil, of_fair_shape
from . import video

WANTED = (*SUFFIXES, *video.SUFFIXES)
EXPECTED = (
    'a path, a pattern, a URL, a folder, the number of a camera, an array [H, W], [H, W, 1], [H, W, 3] (BGR) or '
    '[H, W, 4] (BGRA) of uint8, a PIL image, or a list, tuple or iterator of such'
)


@dataclass(frozen=True)
class Picture:
    """One image to look at, read when it is needed.

    Attributes:
        source: path or URL; BGR pixels [H, W, 3]; or why there is no image.
        where: what an error calls it: its path, its address, its frame; of an array or a PIL image its argument.
        clip: the video or camera that it is a frame of.
        number: of the frame, from 0.
        time: of the frame, seconds from the beginning.
        address: that the pixels were downloaded from.
    """

    source: str | np.ndarray | Exception
    where: str
    clip: video.Clip | None = None
    number: int | None = None
    time: float | None = None
    address: str | None = None

    @property
    def path(self) -> str | None:
        """Of a file on this machine, or its address."""
        return self.source if isinstance(self.source, str) else self.address

    @property
    def origin(self) -> str | None:
        """The file, address, video or camera; None: an array."""
        return self.clip.name if self.clip else self.path

    def read(self) -> np.ndarray:
        """BGR [H, W, 3], uint8, upright.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no image, or damaged; says which.
        """
        if isinstance(self.source, Exception):
            raise self.source
        if not isinstance(self.source, str):
            return self.source
        try:
            pixels = read_image(self.source)
            check_aspect(*pixels.shape[1::-1])
        except DataError as error:
            kind = ValueError if is_url(self.source) or Path(self.source).exists() else FileNotFoundError
            raise kind(self.named(error)) from None
        return pixels

    def named(self, error: Exception) -> str:
        """What is wrong with it, after what it is called."""
        return str(error) if str(error).startswith(f'{self.where}: ') else f'{self.where}: {error}'

    def downloaded(self) -> 'Picture':
        """Itself or, of an address, its pixels, so that it is asked for once."""
        if not isinstance(self.source, str) or not is_url(self.source):
            return self
        return replace(self, source=self.read(), address=self.source)


def is_url(path: str) -> bool:
    return '://' in path


def pictures(inputs, every: int = 1) -> Iterator[Picture]:
    """Every image of the inferencer's ``inputs``, one after the other; an iterator is not read ahead.

    What a file, folder or video does not hold is an error of its picture, raised by ``Picture.read``; others follow.

    Args:
        every: of videos and cameras, leave out all but each n-th frame.

    Raises:
        ValueError, TypeError: what is none, by its place in ``inputs``, with what was expected.
    """
    for item, where in _items(inputs):
        for source in _sources_of(item, where):
            if isinstance(source, Picture):
                yield source
            else:
                yield from _frames_of(source, every)


def known_files(inputs) -> list[tuple[str, bool]]:
    """Path, or address, of each file and whether it is a video; an iterator is not read, and no fault told."""
    files = []
    if not _is_one(inputs) and not isinstance(inputs, list | tuple):
        return files
    try:
        for item, where in _items(inputs):
            if isinstance(item, str | Path):
                sources = _sources_of(item, where)
                files += [(x.path, False) if isinstance(x, Picture) else (x, True) for x in sources]
    except (TypeError, ValueError):  # told when it is read
        pass
    return [(path, is_video) for path, is_video in files if path]


def number_of(inputs, every: int = 1) -> int | None:
    """How many pictures there are, as far as names and headers tell; None: they do not, or there is no end."""
    if not _is_one(inputs) and not isinstance(inputs, list | tuple):
        return None
    total = 0
    try:
        for item, where in _items(inputs):
            for source in _sources_of(item, where):
                if isinstance(source, Picture):
                    total += 1
                    continue
                count = video.clip_of(source).count
                if count is None:
                    return None
                total += -(-count // every)
    except (DataError, TypeError, ValueError):  # told when it is read
        return None
    return total


def _items(inputs) -> Iterator[tuple[object, str]]:
    if _is_one(inputs):
        yield inputs, 'inputs'
    elif isinstance(inputs, Iterable) and not isinstance(inputs, bytes | dict | set | torch.Tensor):
        for i, item in enumerate(inputs):
            if not _is_one(item):
                raise TypeError(_refusal(f'inputs[{i}]', item))
            yield item, f'inputs[{i}]'
    else:
        raise TypeError(_refusal('inputs', inputs))


def _is_one(item) -> bool:
    return isinstance(item, str | Path | np.ndarray | Image.Image | int) and not isinstance(item, bool)


def _refusal(where: str, item) -> str:
    hint = ''
    if type(item).__module__.partition('.')[0] == 'torch':
        hint = '; of a tensor give the array: tensor.cpu().numpy(), channels last'
    elif isinstance(item, bytes):
        hint = '; bytes of a file are opened by PIL.Image.open(io.BytesIO(data))'
    return f'{where} is of type {type(item).__name__}, expected {EXPECTED}{hint}'


def _sources_of(item, where: str) -> Iterator[Picture | str | int]:
    """Pictures, and what videos or cameras are opened by."""
    if isinstance(item, np.ndarray):
        yield Picture(of_fair_shape(bgr_of_array(item, where), where), where)
    elif isinstance(item, Image.Image):
        yield Picture(of_fair_shape(bgr_of_pil(item, where), where), where)
    elif isinstance(item, int):
        if item < 0:
            raise ValueError(f'{where} is {item}, expected the number of a camera, 0 for the first')
        yield item
    elif item == '':
        raise ValueError(f"{where} is '', expected {EXPECTED}")
    else:
        try:
            paths = _paths_of(str(item))
        except (OSError, ValueError) as error:
            yield Picture(error, str(item))
            return
        for path in paths:
            is_video = file_of(path).suffix.lower() in video.SUFFIXES or video.is_live(path)
            yield path if is_video and (is_url(path) or Path(path).exists()) else Picture(path, path)


def _paths_of(path: str) -> list[str]:
    if is_url(path):
        if not path.lower().startswith(('http://', 'https://', *video.STREAMS)):
            raise ValueError(f'{path}: expected an address of http://, https://, or rtsp:// of a camera')
        return [path]
    if '\0' in path:
        return [path]
    if Path(path).is_dir():
        files = sorted(str(file) for file in Path(path).iterdir() if file.suffix.lower() in WANTED)
        if not files:
            raise ValueError(f'no image in {path!r}; expected files ending in {", ".join(WANTED)}{_deeper(path)}')
        return files
    if not glob.has_magic(path) or Path(path).exists():
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    files = [file for file in matches if Path(file).suffix.lower() in WANTED]
    if not files and matches:
        raise ValueError(
            f'no image matches {path!r}, {len(matches)} others do; expected files ending in {", ".join(WANTED)}'
        )
    if not files:
        raise ValueError(f'no file matches {path!r}: {_why_none_matches(path)}')
    return files


def _why_none_matches(pattern: str) -> str:
    parts = Path(pattern).parts
    folder = Path(*takewhile(lambda part: not glob.has_magic(part), parts[:-1]))
    if not folder.is_dir():
        return f'there is no folder {str(folder)!r}' + ('' if folder.is_absolute() else f' in {Path.cwd()}')
    return f'the folder {str(folder.absolute())!r} holds none{_deeper(folder)}'


def _deeper(folder: str | Path) -> str:
    """How to look into the folders of one, where it has some."""
    if not any(inner.is_dir() for inner in Path(folder).iterdir()):
        return ''
    return f"; for folders inside it, give the pattern '{Path(folder) / '**' / '*'}'"


def _frames_of(source: str | int, every: int) -> Iterator[Picture]:
    name = f'camera {source}' if isinstance(source, int) else source
    try:
        for clip, frame in video.frames(source, every):
            at = f'{name}, frame {frame.number}'
            pixels = frame.pixels
            if isinstance(pixels, DataError):
                pixels = ValueError(f'{at}: {pixels}')
            yield Picture(pixels, at, clip, frame.number, frame.time)
    except DataError as error:
        yield Picture(ValueError(f'{name}: {error}'), name)


def file_of(path: str) -> Path:
    """What the path of a file or of an address says of folders and name, for naming what is written about it."""
    return Path(unquote(urlsplit(path).path).lstrip('/')) if is_url(path) else Path(path)
