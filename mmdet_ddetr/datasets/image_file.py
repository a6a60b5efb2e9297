"""Image files: the one place that decides how they are read, decoded and turned upright, and what one may cost.

The check of the data, the loaders, the pictures and the inferencer all read through here, so that they agree.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import mmcv
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from .errors import DataError
from .files import read_file

MAX_PIXELS = 2**27  # 0.4 GB decoded: a camera has 102 million at most
MAX_ASPECT = 100  # of a picture's sides: of a longer one, resizing leaves a side of nothing
EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap width and height
TIFF_WIDTH, TIFF_HEIGHT = 256, 257  # tags
TIFF_BITS, TIFF_CHANNELS, TIFF_KIND = 258, 277, 339
TIFF_KINDS = {1: 'whole numbers', 2: 'whole numbers with a sign', 3: 'floats'}
TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # the last two are of more than 4 GiB
JPEG_START, PNG_START = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
JPEG_MARKER = re.compile(rb'\xff[^\x00\x01\xd0-\xd8\xff]')  # of a segment, or the end; none is among the pixels
SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')  # MMDetection's
SUFFIXES += ('.avif', '.gif', '.jfif', '.jp2', '.tga')  # of pictures that a folder is searched for
COMMON = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF')  # tried first: Pillow imports the others in 0.1 s
# Pillow runs a program for the first, calls Windows for the second and has no decoder for the others
REFUSED = {'EPS', 'WMF', 'BUFR', 'GRIB', 'HDF5', 'MPEG'}
NOT_READ = 'which is not read: save it as PNG of 8 or 16 bits, gray or RGB'
MAX_THREADS = 8  # that read images; each holds one
UPRIGHT = ('color', 'grayscale')  # mmcv's flags that turn a picture as its orientation says


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of itself; ``width`` and ``height`` as :func:`decode_image` returns it."""

    format: str  # Pillow's name
    width: int
    height: int
    orientation: int  # 1 to 8, as in EXIF; 1 is upright

    @property
    def rotated(self) -> bool:
        return self.orientation in QUARTER_TURNS


@dataclass(frozen=True)
class ImageFacts:
    """Of one image file: its upright size, whether that is turned by its orientation, and a digest of its bytes."""

    width: int
    height: int
    rotated: bool
    digest: bytes


def check_aspect(width: int, height: int) -> None:
    """Raise DataError for a picture that is too long for its width."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f'{width}x{height}, expected at most {MAX_ASPECT} times as long as wide, or as wide as long')


def read_image(
    path: str | Path, flag: str = 'color', backend_args: dict | None = None, where: str | None = None
) -> np.ndarray:
    """Read an image file: BGR [h, w, 3], uint8, upright.

    Args:
        path: of the file, or an address.
        flag: see :func:`decode_image`.
        backend_args: of mmengine's file backends; None: the one for the path or address.
        where: what an error calls it; None: its path.

    Raises:
        DataError: the file is missing, empty, damaged, too large or no image; names it and says why.
    """
    try:
        return decode_image(read_file(path, backend_args=backend_args), flag)
    except DataError as error:
        raise DataError(f'{path if where is None else where}: {error}') from None


def name_of(info: dict) -> str:
    """What an error calls an image of a data set."""
    image_id = f' (image id {info["img_id"]})' if 'img_id' in info else ''
    return f'{info.get("img_path")}{image_id}'


def decode_image(data: bytes, flag: str = 'color') -> np.ndarray:
    """Decode the bytes of an image file, by OpenCV or, where it cannot, by Pillow.

    Args:
        data: the whole file.
        flag: mmcv's: 'color' (BGR [h, w, 3]) and 'grayscale' ([h, w]) are turned upright, as the file's orientation
            says (EXIF, or AVIF's own), and have 8 bits; 'color_ignore_orientation' and 'grayscale_ignore_orientation'
            are not turned; 'unchanged' keeps channels and depth and is not turned either. A TIFF always is: its
            decoders leave no choice. Of several pictures in a file the first is taken.

    Raises:
        DataError: empty, truncated, damaged, more than ``MAX_PIXELS``, of numbers whose range is not known, or no
            image; says which.
    """
    header = read_header(data)
    pixels = _decode_by_opencv(data, flag)
    if pixels is None or not _fits(pixels, header):
        pixels = _decode_by_pillow(data, flag)
    if not _fits(pixels, header):
        was = f'{pixels.shape[1]}x{pixels.shape[0]}'
        raise DataError(f'its pixels are {was}, its header says {header.width}x{header.height}')
    if flag in UPRIGHT and header.format != 'TIFF':
        pixels = _turn(pixels, header.orientation)
    return pixels


def inspect_image(path: str | Path, decode: bool = False) -> ImageFacts:
    """Read a file's header and look for its end.

    Args:
        path: the image.
        decode: decode all pixels, too (several times slower; finds damage in the middle of a file).

    Raises:
        DataError: the file is missing, empty, no image, too large or damaged. The message says which, without the path.
    """
    data = read_file(path)
    header = read_header(data)
    if decode:
        check_range(_load_by_pillow(data), data)  # stricter than OpenCV
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return ImageFacts(header.width, header.height, header.rotated, digest)


def inspect_images(paths: Sequence[str | Path], decode: bool = False) -> list[ImageFacts | str]:
    """Of each image what :func:`inspect_image` finds, or why there is none."""

    def inspect(path) -> ImageFacts | str:
        try:
            return inspect_image(path, decode)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(MAX_THREADS) as pool:
        return list(pool.map(inspect, paths))


def read_thumbnail(path: str | Path, width: int, height: int) -> np.ndarray:
    """The whole picture in grey, [height, width], uint8, not turned; of a JPEG only as much is decoded as that takes.

    Raises:
        DataError: it does not load.
    """
    data = read_file(path)
    header = read_header(data)
    if header.format == 'JPEG':
        image = _open_by_pillow(data)
        image.draft('L', (8 * width, 8 * height))
        try:
            pixels = np.asarray(image.convert('L'))
        except Exception as error:  # see _load_by_pillow
            raise DataError(f'does not decode: {error}') from None
    else:
        pixels = decode_image(data, 'grayscale_ignore_orientation')
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def read_header(data: bytes) -> ImageHeader:
    """Size and orientation of an image, without decoding it.

    Raises:
        DataError: empty, no image, truncated, or more than ``MAX_PIXELS``.
    """
    if not data:
        raise DataError('the file is empty')
    with _open_by_pillow(data) as image:
        if reason := why_truncated(data):
            raise DataError(reason)
        width, height = image.size
        if image.format == 'TIFF':  # newer versions of Pillow turn its size
            width, height = image.tag_v2.get(TIFF_WIDTH, width), image.tag_v2.get(TIFF_HEIGHT, height)
        if width * height > MAX_PIXELS:
            raise DataError(f'{width}x{height} is {width * height:,} pixels, expected at most {MAX_PIXELS:,}')
        orientation = _orientation(data, image)
        if orientation in QUARTER_TURNS:
            width, height = height, width
        return ImageHeader(image.format, width, height, orientation)


def why_truncated(data: bytes) -> str | None:
    """Say how the bytes of a JPEG or PNG file show that its end is missing; None if they do not.

    Several versions of OpenCV decode a cut-off JPEG without an error and fill the rest with grey.
    """
    if data.startswith(JPEG_START) and not _jpeg_ends(data):
        return 'the JPEG ends in the middle of its pixels'
    if data.startswith(PNG_START) and not _png_ends(data):
        return 'the PNG ends before its IEND chunk'
    return None


def _jpeg_ends(data: bytes) -> bool:
    """Whether the end of the image is there; more may follow, as the film of a phone's picture does."""
    position = len(JPEG_START)
    while marker := JPEG_MARKER.search(data, position):
        if marker[0] == b'\xff\xd9':
            return True
        length = int.from_bytes(data[marker.end() : marker.end() + 2], 'big')
        position = marker.end() + length  # behind the segment, which may hold a thumbnail
    return False


def _png_ends(data: bytes) -> bool:
    position = len(PNG_START)
    while len(name := data[position + 4 : position + 8]) == 4:
        if name == b'IEND':
            return True
        position += 12 + int.from_bytes(data[position : position + 4], 'big')  # length, name and checksum
    return False


def _open_by_pillow(data: bytes) -> Image.Image:
    def open_as(formats):
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        except UnidentifiedImageError:
            return None
        except Image.DecompressionBombError:
            raise DataError(f'more than {MAX_PIXELS:,} pixels') from None
        except Exception as error:  # its readers of headers raise OSError, SyntaxError, struct.error, ...
            raise DataError(f'does not decode: {error}') from None

    image = open_as(COMMON)
    if image is None:
        Image.init()
        image = open_as([name for name in Image.OPEN if name not in REFUSED])
    if image is None:
        raise DataError(_of_tiff(data) if data.startswith(TIFF_STARTS) else 'not an image')
    return image


def check_range(image: Image.Image, data: bytes) -> None:
    """Raise DataError for numbers of which nobody knows what is black and what is white."""
    if image.format == 'TIFF' and image.mode in ('I', 'F'):
        raise DataError(_of_tiff(data))
    if image.mode == 'F':
        raise DataError(f'a {image.format} of floats, {NOT_READ}')


def _of_tiff(data: bytes) -> str:
    """What a TIFF file holds that nobody can show, and what to do."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b'+' in data[:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        tags[TIFF_WIDTH]  # without which it is none
        bits, kind = tags.get(TIFF_BITS, (1,))[0], TIFF_KINDS.get(tags.get(TIFF_KIND, (1,))[0], 'numbers')
        what = f'a TIFF of {tags.get(TIFF_CHANNELS, 1)} x {bits}-bit {kind}'
    except Exception:  # noqa: BLE001  whatever damaged tags lead to
        return 'a TIFF whose tags are damaged'
    return f'{what}, {NOT_READ}'


def _orientation(data: bytes, image: Image.Image) -> int:
    """1 to 8; 1 where there is none or it is damaged, as every viewer does."""
    try:
        if image.format == 'PNG':  # Pillow would decode all of it to look for EXIF data
            exif = Image.Exif()
            exif.load(_png_exif(data))
        else:
            exif = image.getexif()
        orientation = exif.get(EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  whatever a damaged EXIF block leads to
        return 1
    return orientation if orientation in range(1, 9) else 1


def _png_exif(data: bytes) -> bytes:
    """The eXIf chunk of a PNG, or nothing."""
    start = 8
    while start + 8 <= len(data):
        length, name = int.from_bytes(data[start : start + 4], 'big'), data[start + 4 : start + 8]
        if name == b'eXIf':
            return b'Exif\0\0' + data[start + 8 : start + 8 + length]
        start += length + 12
    return b''


def _decode_by_opencv(data: bytes, flag: str) -> np.ndarray | None:
    flag = flag if flag not in UPRIGHT else f'{flag}_ignore_orientation'
    try:
        return mmcv.imfrombytes(data, flag=flag, backend='cv2')
    except cv2.error:
        return None


def _decode_by_pillow(data: bytes, flag: str) -> np.ndarray:
    image = _load_by_pillow(data)
    if image.mode.startswith('I;16'):
        pixels = np.asarray(image)
        if flag != 'unchanged':
            image = Image.fromarray((pixels >> 8).astype(np.uint8))  # OpenCV's way to 8 bits
    elif flag != 'unchanged':
        check_range(image, data)
        if image.mode == 'I':
            image = Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8))
    if flag.startswith('grayscale'):
        return np.asarray(image.convert('L'))
    if flag.startswith('color'):
        image = image.convert('RGB')
    elif image.mode not in ('L', 'RGB', 'RGBA', 'I', 'F') and not image.mode.startswith('I;16'):
        image = image.convert('RGBA' if image.has_transparency_data else 'RGB')
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _load_by_pillow(data: bytes) -> Image.Image:
    """The picture, decoded."""
    image = _open_by_pillow(data)
    try:
        image.load()
    except Exception as error:  # its decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise DataError(f'does not decode: {error}') from None
    return image


def _fits(pixels: np.ndarray, header: ImageHeader) -> bool:
    """Whether the size is the header's, turned or not."""
    return sorted(pixels.shape[:2]) == sorted((header.width, header.height))


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation."""
    if orientation in QUARTER_TURNS:
        pixels = cv2.transpose(pixels)  # 5 is this alone
    flips = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # of OpenCV: 0 upside down, 1 left to right, -1 both
    return cv2.flip(pixels, flips[orientation]) if orientation in flips else pixels
