"""What the installed stack lacks: compiled mmcv operators, and checkpoints of mmengine that torch >= 2.6 loads."""

import os
import sys
import warnings
from importlib.abc import MetaPathFinder
from importlib.util import spec_from_file_location
from pathlib import Path

from .stack import check_stack

__all__ = ['install']


class _StandInFinder(MetaPathFinder):
    """Finds ``mmcv_ext.py`` under the name ``mmcv._ext``.

    It stands last in ``sys.meta_path`` and so is asked only where mmcv itself has no ``_ext``. The module gets an
    ordinary spec: mmcv and mmengine look for one to tell whether the operators are there.
    """

    def find_spec(self, fullname, path=None, target=None):
        return find_stand_in(fullname)


def find_stand_in(name):
    """Spec of the stand-in if ``name`` is ``mmcv._ext``, else None."""
    if name == 'mmcv._ext':
        return spec_from_file_location(name, Path(__file__).with_name('mmcv_ext.py'))
    return None


_FINDER = _StandInFinder()


def install():
    """Check the stack, make ours configs' bases, stand in for a missing ``mmcv._ext``, let torch load checkpoints.

    Imports torch and mmengine's logging and config, but neither mmcv nor mmdet. A second call changes nothing. With
    ``MMDET_DDETR_COMPAT=0`` in the environment the stack is checked and left as it is.

    Raises:
        ImportError: the stack cannot work; the message says why and which command repairs it.
    """
    check_stack()
    from mmengine.config.utils import MODULE2PACKAGE  # check_stack has just seen that it imports

    MODULE2PACKAGE['mmdet_ddetr'] = 'mmdet_ddetr'  # whose configs ``_base_ = 'package::...'`` finds
    if os.environ.get('MMDET_DDETR_COMPAT') == '0':
        return
    # mmengine 0.10.7 imports it, whoever uses mmengine cannot help it, and every worker process would say so again
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated', category=UserWarning)
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    from .checkpoint import allow_mmengine_checkpoints  # imports torch, which check_stack has just seen

    allow_mmengine_checkpoints()
