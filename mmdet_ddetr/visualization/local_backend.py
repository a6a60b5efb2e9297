import functools
from pathlib import Path

import numpy as np
from mmengine.logging import MMLogger
from mmengine.visualization import LocalVisBackend
from mmengine.visualization.vis_backend import force_init_env

from ..apis.pictures import write_picture
from ..registry import VISBACKENDS


def _reported(method):
    """The method, whose failure to write is an error in the log instead of the end of the training."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            MMLogger.get_current_instance().error(f'scalars and pictures COULD NOT BE WRITTEN: {error}')

    return call


@VISBACKENDS.register_module()
class SafeLocalVisBackend(LocalVisBackend):
    """mmengine's LocalVisBackend, scalars and pictures as files, on a disk that may be full for a while.

    Arguments as in ``mmengine.visualization.LocalVisBackend``.
    """

    @_reported
    @force_init_env
    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs) -> None:
        """As the base class, which does not look at whether OpenCV wrote it."""
        write_picture(Path(self._img_save_dir, f'{name}_{step}.png'), image[..., ::-1])

    add_scalar = _reported(LocalVisBackend.add_scalar)
    add_scalars = _reported(LocalVisBackend.add_scalars)
