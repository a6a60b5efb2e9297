"""What the inferencer takes for images: files, folders, addresses, arrays, Pillow's images, and streams of these."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from PIL import Image, ImageOps

from ..datasets import DataError, read_image
from ..datasets.image_file import check_aspect

SUFFIXES = (*IMG_EXTENSIONS, '.avif', '.gif', '.jfif', '.jp2', '.tga')  # of files that a folder is searched for
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
EXPECTED = (
    'a path, a URL, a folder, an array [H, W], [H, W, 1], [H, W, 3] (BGR) or [H, W, 4] (BGRA) of uint8, a PIL image, '
    'or a list, tuple or iterator of such'
)


@dataclass(frozen=True)
class Picture:
    """One image to look at, read when it is needed.

    Attributes:
        source: path or URL, or BGR pixels [H, W, 3].
        where: what an error calls it.
    """

    source: str | np.ndarray
    where: str

    @property
    def path(self) -> str | None:
        return self.source if isinstance(self.source, str) else None

    def read(self) -> np.ndarray:
        """BGR [H, W, 3], uint8, upright.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no image, or damaged; says which.
        """
        if self.path is None:
            return self.source
        try:
            return read_image(self.path)
        except DataError as error:
            kind = ValueError if is_url(self.path) or Path(self.path).exists() else FileNotFoundError
            raise kind(f'{self.where}: {error}') from None


def is_url(path: str) -> bool:
    return '://' in path


def pictures(inputs) -> Iterator[Picture]:
    """Every image of the inferencer's ``inputs``, one after the other; an iterator is not read ahead.

    Raises:
        ValueError, TypeError: what is none, by its place in ``inputs``, with what was expected.
    """
    if _is_one(inputs):
        yield from _pictures_of(inputs, 'inputs')
    elif isinstance(inputs, Iterable) and not isinstance(inputs, bytes | dict | set | torch.Tensor):
        for i, item in enumerate(inputs):
            if not _is_one(item):
                raise TypeError(_refusal(f'inputs[{i}]', item))
            yield from _pictures_of(item, f'inputs[{i}]')
    else:
        raise TypeError(_refusal('inputs', inputs))


def _is_one(item) -> bool:
    return isinstance(item, str | Path | np.ndarray | Image.Image)


def _refusal(where: str, item) -> str:
    hint = ''
    if type(item).__module__.partition('.')[0] == 'torch':
        hint = '; of a tensor give the array: tensor.cpu().numpy(), channels last'
    elif isinstance(item, bytes):
        hint = '; bytes of a file are opened by PIL.Image.open(io.BytesIO(data))'
    return f'{where} is of type {type(item).__name__}, expected {EXPECTED}{hint}'


def _pictures_of(item, where: str) -> Iterator[Picture]:
    if isinstance(item, np.ndarray):
        yield Picture(_of_fair_shape(_bgr_of_array(item, where), where), where)
    elif isinstance(item, Image.Image):
        yield Picture(_of_fair_shape(_bgr_of_pil(item, where), where), where)
    elif item == '':
        raise ValueError(f"{where} is '', expected {EXPECTED}")
    elif not is_url(str(item)) and Path(item).is_dir():
        files = sorted(str(path) for path in Path(item).iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f'{where}: no image in {str(item)!r}; expected files ending in {", ".join(SUFFIXES)}')
        for file in files:
            yield Picture(file, where)
    elif file_of(str(item)).suffix.lower() in VIDEOS and (is_url(str(item)) or Path(item).exists()):
        raise ValueError(
            f'{where}: {item} is a video, which is not read; give its frames, as mmcv.VideoReader({str(item)!r}) does'
        )
    else:
        yield Picture(str(item), where)


def _of_fair_shape(pixels: np.ndarray, where: str) -> np.ndarray:
    try:
        check_aspect(*pixels.shape[1::-1])
    except DataError as error:
        raise ValueError(f'{where}: {error}') from None
    return pixels


def _bgr_of_array(array: np.ndarray, where: str) -> np.ndarray:
    """[H, W], [H, W, 1], [H, W, 3] or [H, W, 4], uint8 -> [H, W, 3]; alpha is left out, as of a file."""
    got = f'{where} is an array {list(array.shape)} of {array.dtype}'
    if array.dtype != np.uint8:
        how = {
            'f': 'whose range is not known: if it is 0 to 1, give (255 * array).round().astype(numpy.uint8)',
            'u': 'give (array >> 8).astype(numpy.uint8) if all 16 bits are used',
            'i': 'give array.astype(numpy.uint8) if its values are 0 to 255',
            'b': 'give 255 * array.astype(numpy.uint8)',
        }.get(array.dtype.kind, 'give an array of numbers')
        raise ValueError(f'{got}, expected uint8; {how}')
    if array.ndim == 4:
        raise ValueError(f'{got}, expected one image; of a batch give a list: list(array)')
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        hint = ''
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = '; its channels come first: give array.transpose(1, 2, 0)'
        raise ValueError(f'{got}, expected [H, W], [H, W, 1], [H, W, 3] (BGR) or [H, W, 4] (BGRA){hint}')
    if not array.size:
        raise ValueError(f'{got}, which has no pixel')
    if array.ndim == 2:
        array = array[..., None]
    return np.ascontiguousarray(array[..., :3] if array.shape[2] > 1 else array.repeat(3, 2))


def _bgr_of_pil(image: Image.Image, where: str) -> np.ndarray:
    """Any mode but floats -> [H, W, 3], turned as its EXIF data say; 16 bits are cut to 8, as of a file."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # it is read from its file now: whatever a decoder raises
        raise ValueError(f'{where}: {getattr(image, "filename", "") or "the PIL image"}: {error}') from None
    if not all(image.size):
        raise ValueError(f'{where} is a PIL image of {image.width}x{image.height}, which has no pixel')
    if image.mode in ('I', 'F'):
        raise ValueError(
            f"{where} is a PIL image of mode '{image.mode}', whose range is not known; expected one of 8 or 16 bits"
        )
    if image.mode.startswith('I;16'):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('La', 'RGBa'):  # premultiplied; Pillow converts them step by step only
        image = image.convert({'La': 'LA', 'RGBa': 'RGBA'}[image.mode])
    return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])


def file_of(path: str) -> Path:
    """What the path of a file or of an address says of folders and name, for naming what is written about it."""
    return Path(unquote(urlsplit(path).path).lstrip('/')) if is_url(path) else Path(path)
