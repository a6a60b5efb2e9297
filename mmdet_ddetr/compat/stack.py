"""One clear sentence for a stack that cannot work, found without importing any of it but OpenCV.

The limits on mmcv and mmengine are read from mmdet's own files, so that they are right for every release and fork
(onedl-mmdetection sets none).
"""

import ctypes
import re
import runpy
from importlib.machinery import ExtensionFileLoader, PathFinder
from importlib.util import find_spec
from pathlib import Path

_MINIMUM = {'torch': '2.10', 'mmdet': '3.3.0'}  # torch: LibTorch's stable ABI, on which the operators are built
_INSTALL = {
    'torch': 'pip install "torch>=2.10"',
    'mmengine': 'pip install "mmengine>=0.10.7,<1"',
    'mmcv': 'pip install "mmcv-lite>=2.1.0,<2.2"',
    'mmdet': 'pip install "mmdet>=3.3.0,<4"',
}
_REPLACE_MMCV = f'pip uninstall -y mmcv mmcv-lite && {_INSTALL["mmcv"]}'


def check_stack():
    """Raise ImportError, with the command that repairs it, unless torch, mmengine, mmcv and mmdet go together."""
    _check_cv2()
    folders = {module: _folder_of(module) for module in _INSTALL}
    _check_minimum(folders)
    _check_pkg_resources(folders['mmengine'])
    _check_limits_of_mmdet(folders)
    _check_compiled_mmcv(folders)


def _check_cv2():
    """opencv-python, which mmengine and mmcv ask for, loads libGL, which a machine without a display often lacks."""
    try:
        import cv2  # noqa: F401  nothing less tells: it is a library of the system that is missing
    except ImportError as error:
        raise ImportError(
            f'OpenCV does not load ({error}): pip install --force-reinstall --no-deps "opencv-python-headless>=4.10,<5"'
        ) from None


def _folder_of(module):
    spec = find_spec(module)
    if spec is None or spec.origin is None:  # no origin: only files left behind by an uninstalled package
        raise ImportError(f'mmdet_ddetr needs {module}, which is not installed: {_INSTALL[module]}')
    return Path(spec.origin).parent


def _version_of(folder):
    """``__version__`` of the package in ``folder``.

    From its version.py rather than from metadata: where mmcv and mmcv-lite were both installed, two distributions claim
    the same folder, and the files of the last one are what is imported.
    """
    return runpy.run_path(str(folder / 'version.py'))['__version__']


def _check_minimum(folders):
    from packaging.version import Version  # comes with mmcv

    for module, minimum in _MINIMUM.items():
        version = _version_of(folders[module])
        if Version(version).release < Version(minimum).release:  # the release alone: a nightly 2.10.0a0 will do
            raise ImportError(f'mmdet_ddetr needs {module}>={minimum}, got {version}: {_INSTALL[module]}')


def _check_pkg_resources(mmengine):
    needed = 'pkg_resources' in (mmengine / 'utils' / 'package_utils.py').read_text(encoding='utf-8')
    if needed and find_spec('pkg_resources') is None:
        raise ImportError(
            f'mmengine {_version_of(mmengine)} needs pkg_resources, which setuptools has no more since 82: '
            'pip install "setuptools>=77,<82"'
        )


def _check_limits_of_mmdet(folders):
    from packaging.version import Version

    source = (folders['mmdet'] / '__init__.py').read_text(encoding='utf-8')
    limits = dict(re.findall(r"^(\w+_(?:minimum|maximum)_version) = '(.+)'$", source, re.MULTILINE))
    for module, repair in (('mmengine', _INSTALL['mmengine']), ('mmcv', _REPLACE_MMCV)):
        version = _version_of(folders[module])
        low, high = (limits.get(f'{module}_{end}_version') for end in ('minimum', 'maximum'))
        if (low and Version(version) < Version(low)) or (high and Version(version) >= Version(high)):
            raise ImportError(
                f'mmdet {_version_of(folders["mmdet"])} needs {module}>={low},<{high}, got {version}: {repair}'
            )


def _check_compiled_mmcv(folders):
    """A compiled mmcv that was built for another torch cannot be loaded, and must not be replaced in silence."""
    spec = PathFinder.find_spec('mmcv._ext', [str(folders['mmcv'])])
    if spec is None or not isinstance(spec.loader, ExtensionFileLoader):
        return
    import torch  # brings the libraries that the extension links

    try:
        ctypes.CDLL(spec.origin)  # resolves every symbol without running the module's initialisation
    except OSError as error:
        raise ImportError(
            f'the compiled operators of mmcv {_version_of(folders["mmcv"])} do not load with torch '
            f'{torch.__version__} ({error}): {_REPLACE_MMCV}'
        ) from None
