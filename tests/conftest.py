"""Fixtures that more than one test file uses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chromium import EXECUTABLE, Chromium

import mmdet_ddetr  # noqa: F401  before any test file imports mmdet

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'tools'))  # for _cli, where a test runs a tool in this process


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def unformatted_configs():
    """Configs are written as they are: to format them takes a second, more than the rest of a small training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.config.FormatCode', lambda text, **options: (text, True))
        yield


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    """One thread a worker process: the tensors are too small for more, and xdist already fills the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder with the data set of ``training_case``."""
    from training_case import write_data  # here: most test files train nothing

    folder = tmp_path_factory.mktemp('data')
    write_data(folder)
    return folder


@pytest.fixture(scope='session')
def workspace(tmp_path_factory):
    """A folder with ``data/shapes`` in it: 8 train, 4 val and 2 test images of 96 px, as `make demo` makes them."""
    folder = tmp_path_factory.mktemp('workspace')
    command = [sys.executable, ROOT / 'tools/make_shapes.py', 'data/shapes', '--size=96']
    subprocess.run([*command, '--train=8', '--val=4', '--test=2'], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope='session')
def run_tool(workspace):
    """Run a tool of the checkout in the workspace: ``run_tool('train.py', *args)`` -> (return code, all it printed)."""

    def run(name, *args):
        env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
        command = [sys.executable, str(ROOT / 'tools' / name), *map(str, args)]
        done = subprocess.run(
            command, cwd=workspace, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return done.returncode, done.stdout.strip()

    return run


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """Headless Chromium, one for all tests of a file."""
    if EXECUTABLE is None:
        pytest.skip('no Chromium on the PATH (apt-get install chromium)')
    browser = Chromium(tmp_path_factory.mktemp('chromium'))
    yield browser
    browser.close()
