import mmcv
import numpy as np

from ..registry import TRANSFORMS
from .loading import LoadImageFromFile

MIB = 2**20


@TRANSFORMS.register_module()
class LoadImageOnce(LoadImageFromFile):
    """An image of a training, at most ``scale`` large, which is read, decoded and made smaller once only.

    A photograph of 12 megapixels takes 0.1 s to decode, every time; what a model sees of it is small. Comes before
    ``LoadAnnotations``: the boxes shrink with the image, masks do not and are left out. Not for evaluation, whose boxes
    are those of the file.

    Args:
        scale: (width, height) in px or either way round, as of ``Resize`` with ``keep_ratio=True``; smaller images stay
            as they are. Where the pipeline crops, as much larger than its own as it may enlarge a crop.
        cache_mib: memory for images, of each worker of the data loader. Images that come when it is full are decoded
            each time.
        **kwargs: those of ``LoadImageFromFile``.
    """

    def __init__(self, scale: tuple[int, int], cache_mib: float = 512, **kwargs):
        super().__init__(**kwargs)
        self.scale, self.cache_mib = tuple(scale), cache_mib
        self._images: dict[str, tuple[np.ndarray, tuple[int, int]]] = {}  # by path: pixels, shape in the file
        self._free = cache_mib * MIB  # bytes

    def transform(self, results: dict) -> dict | None:
        path = results['img_path']
        if path not in self._images:
            if super().transform(results) is None:
                return None
            image, shape = results['img'], results['ori_shape']
            if max(self.scale) < max(shape) or min(self.scale) < min(shape):
                image = mmcv.imrescale(image, self.scale, interpolation='area')
            if image.nbytes > self._free:
                return self._give(results, image, shape)
            self._free -= image.nbytes
            self._images[path] = image, shape
        image, shape = self._images[path]
        return self._give(results, image.copy(), shape)

    def _give(self, results: dict, image: np.ndarray, shape: tuple[int, int]) -> dict:
        results.update(img=image, img_shape=image.shape[:2], ori_shape=shape)
        if image.shape[:2] != shape:
            factors = np.array([image.shape[1] / shape[1], image.shape[0] / shape[0]] * 2)
            results['instances'] = [
                {k: v for k, v in instance.items() if k != 'mask'} | dict(bbox=(factors * instance['bbox']).tolist())
                for instance in results.get('instances', ())
            ]
            results['scale_factor'] = tuple(factors[:2])
        return results
