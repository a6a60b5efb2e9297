"""What a data set says about a picture that it cannot load, and what one picture may cost."""

from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile

from .errors import DataError
from .loading import LoadImageFromFile

MAX_PIXELS = 2**23  # a frame of 4K video
PLAIN_LOADERS = ('LoadImageFromFile', 'mmcv.LoadImageFromFile', 'mmdet.LoadImageFromFile', MMCVLoadImageFromFile)


class CarefulLoading:
    """A mixin for mmdet's data sets. Whatever fails while a picture is loaded names its file.

    mmcv's ``LoadImageFromFile`` in the pipeline is replaced by this package's, also where the config has to keep its
    name, as the test pipelines of mmdet's ``DetInferencer`` do.

    Args:
        max_pixels: of a picture as it reaches the model. A larger one, which a pipeline without ``Resize`` lets
            through, is an error, when the data set is built if it can be told then. None: any.
        **kwargs: of the data set.

    Raises:
        DataError: a picture does not load or is too large, or ``filter_cfg`` leaves none.
    """

    def __init__(self, *args, pipeline=(), max_pixels: int | None = MAX_PIXELS, **kwargs):
        self.max_pixels = max_pixels
        self._resizes = any(word in str(pipeline) for word in ('Resize', 'Crop', 'RandomAffine', 'Mosaic'))
        super().__init__(*args, pipeline=[_with_our_loader(transform) for transform in pipeline], **kwargs)

    def load_data_list(self) -> list[dict]:
        data_list = super().load_data_list()
        if self.max_pixels is not None and not self._resizes:
            for info in data_list:
                if info.get('width', 0) * info.get('height', 0) > self.max_pixels:
                    self._refuse(info, info['width'], info['height'])
        return data_list

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if self.data_list and not kept:
            raise DataError(
                f'{self.ann_file}: filter_cfg={self.filter_cfg} leaves none of its {len(self.data_list)} images: '
                'min_size is the least width and height in px, filter_empty_gt leaves out those without a box'
            )
        return kept

    def prepare_data(self, idx: int) -> dict | None:
        info = self.get_data_info(idx)
        try:
            data = self.pipeline(info)
        except DataError:
            raise
        except Exception as error:  # of any transform
            raise DataError(f'{_name(info)}: {type(error).__name__} in the pipeline: {error}'.rstrip()) from error
        if data is not None and self.max_pixels is not None and 'inputs' in data:
            inputs = data['inputs']
            for image in inputs if isinstance(inputs, list) else [inputs]:
                height, width = image.shape[-2:]
                if height * width > self.max_pixels:
                    self._refuse(info, width, height)
        return data

    def _refuse(self, info: dict, width: int, height: int) -> None:
        raise DataError(
            f'{_name(info)}: reaches the model with {width}x{height} = {width * height:,} pixels, expected at most '
            f'{self.max_pixels:,}: put a Resize into the pipeline, or set max_pixels of the data set'
        )


def _with_our_loader(transform):
    if isinstance(transform, dict) and transform.get('type') in PLAIN_LOADERS:
        return {**transform, 'type': LoadImageFromFile}
    return transform


def _name(info: dict) -> str:
    return f'{info.get("img_path")} (image id {info.get("img_id")})'
