import logging

import mmcv
import mmdet.datasets.utils
import numpy as np
from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile
from mmengine.logging import print_log

from ..registry import TRANSFORMS
from .errors import DataError
from .files import read_file
from .image_file import check_aspect, decode_image, name_of, why_truncated


@TRANSFORMS.register_module()
class LoadImageFromFile(MMCVLoadImageFromFile):
    """mmcv's loader, whose every failure names the file, the image id and the cause.

    mmcv's own lets OpenCV's message through, which for an empty file names nothing, and trains on the grey remainder
    of a JPEG that ends too early where OpenCV decodes one. This one also reads what only Pillow can decode, turns
    pictures of every format upright and limits what one may cost, see ``mmdet_ddetr.datasets.image_file``.

    Args: those of ``mmcv.transforms.LoadImageFromFile``. With ``ignore_empty=True`` a bad image is an error in the log,
    and another one, drawn at random, takes its place. An ``imdecode_backend`` other than 'cv2' is mmcv's to decode.

    Raises:
        DataError: the image is missing, empty, truncated, too large, too long for its width or does not decode.
    """

    def transform(self, results: dict) -> dict | None:
        try:
            image = self._load(results['img_path'])
            check_aspect(*image.shape[1::-1])
        except DataError as error:
            message = f'{name_of(results)}: {error}'
            if self.ignore_empty:
                print_log(f'{message}; another image takes its place', 'current', logging.ERROR)
                return None
            raise DataError(message) from error
        results['img'] = image.astype('float32') if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def _load(self, path: str) -> np.ndarray:
        """The pixels, [h, w, 3] or [h, w]."""
        data = read_file(path, backend_args=self.backend_args)
        if self.imdecode_backend == 'cv2':
            return decode_image(data, self.color_type)
        if reason := 'the file is empty' if not data else why_truncated(data):
            raise DataError(reason)
        image = mmcv.imfrombytes(data, flag=self.color_type, backend=self.imdecode_backend)
        if image is None:
            raise DataError(f'not an image that {self.imdecode_backend} decodes')
        return image


class _MMCVLoader:
    """Equal to mmcv's loader and its subclasses."""

    def __eq__(self, other):
        return isinstance(other, type) and issubclass(other, MMCVLoadImageFromFile)

    __hash__ = None


# get_loading_pipeline, by which analyze_results finds the loaders in a pipeline, asks for mmcv's class itself. This
# file is imported when a pipeline's type is looked up, and the function may be in use by then: its global is replaced.
mmdet.datasets.utils.LoadImageFromFile = _MMCVLoader()
