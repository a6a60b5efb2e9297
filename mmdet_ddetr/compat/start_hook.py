"""A line that Python runs at its start, so that mmdet finds the stand-ins without an ``import mmdet_ddetr`` before it.

It is opt-in: ``python -m mmdet_ddetr --install-hook`` writes it beside the installed packages. It imports nothing and
costs nothing; only where an import of ``mmcv._ext`` is about to fail does it import this package.
"""

import sysconfig
from pathlib import Path

_LINE = (
    'import sys, types; sys.meta_path.append(types.SimpleNamespace(find_spec=lambda name, path=None, target=None: '
    "__import__('mmdet_ddetr.compat').compat.find_stand_in(name) if name == 'mmcv._ext' and "
    "__import__('importlib.util').util.find_spec('mmdet_ddetr') else None))\n"
)


def path() -> Path:
    """Where the hook of this Python environment is, if it is."""
    return Path(sysconfig.get_path('purelib'), 'mmdet_ddetr_hook.pth')


def install() -> Path:
    """Write the hook; it works from the next start of Python on."""
    path().write_text(_LINE, encoding='utf-8')
    return path()


def remove() -> Path:
    """Remove the hook, if there is one."""
    path().unlink(missing_ok=True)
    return path()
