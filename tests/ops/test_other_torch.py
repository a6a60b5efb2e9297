"""The compiled ops under the oldest PyTorch that is allowed and the newest that pip finds, from one build.

    python -m pytest -m slow tests/ops/test_other_torch.py      # downloads two wheels of PyTorch, 1.5 GB
    make test-torch TORCH=2.12.0                                # any version, with all that it brings

Each PyTorch is put into a folder that lies before the installed one on Python's path; nothing is installed over it.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from cuda_stand_ins import make_stand_ins

from mmdet_ddetr.ops._load import EXTENSION_LOADED

ROOT = Path(__file__).parents[2]
OLDEST = re.search(r'"torch>=([\d.]+)"', (ROOT / 'pyproject.toml').read_text())[1] + '.0'
HERE = torch.__version__.partition('+')[0]


@pytest.fixture
def other_torch(tmp_path):
    """Unpack a PyTorch by pip's requirement: environment for Python, folder; gigabytes, removed after the test."""
    folder = tmp_path / 'packages'

    def install(requirement):
        command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-cache-dir', '--target', folder]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f'pip has no {requirement}: {done.stderr.strip().splitlines()[-1]}')
        stand_ins = tmp_path / 'stand_ins'
        if runpy.run_path(str(folder / 'torch/version.py'))['cuda']:
            make_stand_ins(folder / 'torch/lib', stand_ins)
        paths = map(str, [folder, ROOT, *filter(None, [os.environ.get('PYTHONPATH')])])
        return {
            **os.environ,
            'PYTHONPATH': os.pathsep.join(paths),
            'LD_LIBRARY_PATH': os.pathsep.join(filter(None, [str(stand_ins), os.environ.get('LD_LIBRARY_PATH')])),
            'OMP_NUM_THREADS': '1',
        }, folder

    yield install
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(not EXTENSION_LOADED, reason='the extension is not built')
@pytest.mark.skipif(not sysconfig.get_platform().startswith('linux'), reason='stand-ins are made for Linux')
@pytest.mark.parametrize('requirement', [f'torch=={OLDEST}', f'torch>{HERE}'], ids=['oldest', 'newest'])
def test_ops_under_another_torch(requirement, other_torch):
    environment, folder = other_torch(requirement)

    def python(*command):
        return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)

    done = python('-c', 'import torch, mmdet_ddetr.ops._load as l; print(torch.__file__, l.EXTENSION_LOADED)')
    assert done.stdout.split() == [str(folder / 'torch/__init__.py'), 'True'], done.stderr
    version = runpy.run_path(str(folder / 'torch/version.py'))['__version__']
    done = python('-m', 'pytest', '-q', '--tb=short', '-p', 'no:cacheprovider', 'tests/ops')
    print(f'torch {version}: {(done.stdout.splitlines() or [""])[-1]}')
    assert done.returncode == 0, done.stdout[:5000] + done.stdout[-5000:]
