import functools

import cv2
from mmengine.logging import MMLogger
from mmengine.visualization import LocalVisBackend

from ..registry import VISBACKENDS


def _reported(method):
    """The method, whose failure to write is an error in the log instead of the end of the training."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except (OSError, cv2.error) as error:
            MMLogger.get_current_instance().error(f'scalars and pictures COULD NOT BE WRITTEN: {error}')

    return call


@VISBACKENDS.register_module()
class SafeLocalVisBackend(LocalVisBackend):
    """mmengine's LocalVisBackend, scalars and pictures as files, on a disk that may be full for a while.

    Arguments as in ``mmengine.visualization.LocalVisBackend``.
    """

    add_image = _reported(LocalVisBackend.add_image)
    add_scalar = _reported(LocalVisBackend.add_scalar)
    add_scalars = _reported(LocalVisBackend.add_scalars)
