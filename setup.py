"""What pyproject.toml cannot say: the files that mim looks for in an installed package, and the compiled extension.

mim reads ``<package>/.mim/{configs,tools,model-index.yml}``. A wheel gets copies, made in the build folder; an editable
install gets links to the folders beside this file.
"""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / 'csrc'))
from build_extension import BuildExtension, extensions  # noqa: E402  (csrc/build_extension.py)

PACKAGE = 'mmdet_ddetr'
MIM_FILES = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Build the Python files and put ``.mim`` beside them."""

    def run(self):
        super().run()
        if self.editable_mode:
            link_mim(ROOT / PACKAGE / '.mim')
        else:
            copy_mim(Path(self.build_lib, PACKAGE, '.mim'))


def copy_mim(target):
    """Copy the files of mim to ``target``, replacing what an earlier build left there."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in MIM_FILES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy2(source, target / name)


def link_mim(target):
    """Fill ``target`` with links to the files of mim, or with copies where links are not allowed (Windows)."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    try:
        for name in MIM_FILES:
            (target / name).symlink_to(Path('..', '..', name), target_is_directory=(ROOT / name).is_dir())
    except OSError:
        copy_mim(target)


setup(
    cmdclass={'build_py': BuildWithMim, 'build_ext': BuildExtension},
    ext_modules=extensions(),
    options={'bdist_wheel': {'py_limited_api': 'cp310'}},  # the extension does not depend on Python's version
)
