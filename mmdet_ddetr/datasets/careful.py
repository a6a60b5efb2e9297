"""What a data set says about a picture that it cannot load, and what one picture may cost."""

from ..registry import TRANSFORMS, our_class
from .errors import DataError
from .files import check_annotations
from .image_file import name_of
from .loading import LoadImageFromFile
from .paste_boxes import PasteBoxes

MAX_INPUT_PIXELS = 2**23  # a frame of 4K video


class CarefulLoading:
    """A mixin for mmdet's data sets. Whatever fails while a picture is loaded names its file.

    mmcv's ``LoadImageFromFile`` in the pipeline is replaced by this package's, also where the config has to keep its
    name, as the test pipelines of mmdet's ``DetInferencer`` do.

    Args:
        max_pixels: of a picture as it reaches the model. A larger one, which a pipeline without ``Resize`` lets
            through, is an error, when the data set is built if it can be told then. None: any.
        **kwargs: of the data set.

    Raises:
        DataError: a picture does not load or is too large, the annotation file is, a folder of ``data_prefix`` is no
            text, or ``filter_cfg`` leaves no image.
    """

    def __init__(self, *args, pipeline=(), max_pixels: int | None = MAX_INPUT_PIXELS, **kwargs):
        for key, folder in (kwargs.get('data_prefix') or {}).items():
            if not isinstance(folder, str):
                raise DataError(
                    f"data_prefix: {key!r} is {folder!r}, expected a folder, or '' for data_root itself. A config "
                    'leaves out the keys of its base by data_prefix=dict(_delete_=True, ...)'
                )
        self.max_pixels = max_pixels
        self._resizes = any(word in str(pipeline) for word in ('Resize', 'Crop', 'RandomAffine', 'Mosaic'))
        super().__init__(*args, pipeline=[_with_our_loader(transform) for transform in pipeline], **kwargs)
        for place, transform in enumerate(self.pipeline.transforms):
            if isinstance(transform, PasteBoxes):
                transform.look_into(self, self.pipeline.transforms[:place])

    def load_data_list(self) -> list[dict]:
        check_annotations(self.ann_file, self.backend_args)
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
            raise DataError(f'{name_of(info)}: {type(error).__name__} in the pipeline: {error}'.rstrip()) from error
        if data is not None and self.max_pixels is not None and 'inputs' in data:
            inputs = data['inputs']
            for image in inputs if isinstance(inputs, list) else [inputs]:
                height, width = image.shape[-2:]
                if height * width > self.max_pixels:
                    self._refuse(info, width, height)
        return data

    def _refuse(self, info: dict, width: int, height: int) -> None:
        raise DataError(
            f'{name_of(info)}: reaches the model with {width}x{height} = {width * height:,} pixels, expected at most '
            f'{self.max_pixels:,}: put a Resize into the pipeline, or set max_pixels of the data set'
        )


def _with_our_loader(transform):
    if isinstance(transform, dict) and our_class(transform.get('type'), TRANSFORMS) is LoadImageFromFile:
        return {**transform, 'type': LoadImageFromFile}
    return transform
