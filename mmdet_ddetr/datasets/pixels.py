"""Arrays and Pillow's images to the pixels that a detector takes."""

import numpy as np
from PIL import Image, ImageOps

from .errors import DataError
from .image_file import check_aspect


def of_fair_shape(pixels: np.ndarray, where: str) -> np.ndarray:
    """The same, or ValueError for what is too long for its width."""
    try:
        check_aspect(*pixels.shape[1::-1])
    except DataError as error:
        raise ValueError(f'{where}: {error}') from None
    return pixels


def bgr_of_array(array: np.ndarray, where: str) -> np.ndarray:
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


def bgr_of_pil(image: Image.Image, where: str) -> np.ndarray:
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
