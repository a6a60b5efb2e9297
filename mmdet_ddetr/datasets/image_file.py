"""What can be said about an image file without decoding it."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .errors import DataError

EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap width and height


@dataclass(frozen=True)
class ImageFacts:
    """``width`` and ``height`` as OpenCV decodes the file (EXIF orientation applied); ``digest`` of its bytes."""

    width: int
    height: int
    rotated: bool
    digest: bytes


def why_truncated(data: bytes) -> str | None:
    """Say how the bytes of a JPEG or PNG file show that its end is missing; None if they do not.

    Several versions of OpenCV decode a cut-off JPEG without an error and fill the rest with grey.
    """
    # Inside a scan FF is always followed by 00 or a restart marker, so these two searches cannot hit pixel data.
    if data[:2] == b'\xff\xd8' and data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
        return 'the JPEG ends in the middle of its pixels'
    if data[:8] == b'\x89PNG\r\n\x1a\n' and b'IEND' not in data[-64:]:
        return 'the PNG ends before its IEND chunk'
    return None


def inspect_image(path: Path, decode: bool = False) -> ImageFacts:
    """Read a file's header and look for its end.

    Args:
        path: the image.
        decode: decode all pixels, too (several times slower; finds damage in the middle of a file).

    Raises:
        DataError: the file is missing, empty, no image or damaged. The message says which, without the path.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError('no such file') from None
    except OSError as error:
        raise DataError(f'not readable: {error.strerror}') from None
    if not data:
        raise DataError('the file is empty')
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if reason := why_truncated(data):
                raise DataError(reason)
            # Pillow decodes all of a PNG to look for EXIF data, which PNGs as good as never have
            orientation = 1 if image.format == 'PNG' else image.getexif().get(EXIF_ORIENTATION, 1)
            if decode:
                image.load()
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError('not an image') from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise DataError(f'does not decode: {error}') from None
    rotated = orientation in QUARTER_TURNS
    if rotated:
        width, height = height, width
    return ImageFacts(width, height, rotated, hashlib.blake2b(data, digest_size=16).digest())
