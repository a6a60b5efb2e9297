"""The Deformable DETR family as a MMDetection extension."""

from . import waiting

waiting.wait_briefly()  # before PyTorch is imported

from . import compat  # noqa: E402
from .version import __version__  # noqa: E402

compat.install()  # before anything of mmdet: mmdet imports compiled mmcv ops at import time

_EXPORTS = {
    'AccelerateHook': '.hooks',
    'MSDeformAttn': '.layers',
    'accelerate': '.acceleration',  # not .accelerate: importing that would hide the function behind the module
    'get_config': '.apis',
    'optimize_for_inference': '.inference',
}

__all__ = ['__version__', *_EXPORTS]


def __getattr__(name):
    """Load the public names on first use, so that ``import mmdet_ddetr`` alone does not import mmdet."""
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted({*globals(), *__all__})
