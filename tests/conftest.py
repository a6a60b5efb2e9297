"""Fixtures that more than one test file uses."""

import gc
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import mmengine.config
import pytest
import torch
from chromium import EXECUTABLE, Chromium

import mmdet_ddetr  # noqa: F401  before any test file imports mmdet

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'tools'))  # for _cli, where a test runs a tool in this process


@pytest.fixture(scope='module', autouse=True)
def imports_are_no_garbage():
    """mmengine's data sets look for garbage, a second each among all that is imported here."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def quick_mmengine():
    """Without what takes mmengine long and no test is about.

    Configs are written as they are: to format them takes a second, more than the rest of a small training. To read one,
    mmengine reads the 102 metafiles of mmdet for every ``mmdet::`` in its bases: once is enough. Of each parameter of a
    model it finds, by its mean, and logs what initialised it.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in ('base_module', 'weight_init'):
            patch.setattr(f'mmengine.model.{module}.update_init_info', lambda module, init_info: None)
        patch.setattr('mmengine.model.base_module.BaseModule._dump_init_info', lambda module: None)
        patch.setattr('mmengine.config.config.FormatCode', lambda text, **options: (text, True))
        patch.setattr('mmengine.config.utils.load', cache(mmengine.config.utils.load))
        patch.setattr('mmengine.config.config.is_installed', cache(mmengine.config.config.is_installed))
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
    """Run a tool of the checkout in the workspace: ``run_tool('train.py', *args)`` -> (return code, all it printed).

    In a fork of this process: to import everything takes longer than what most tools are asked for here.
    """
    from training_case import fork

    def run(name, *args):
        def call():
            os.chdir(workspace)
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            sys.stdout, sys.stderr = os.fdopen(1, 'w', 1, closefd=False), os.fdopen(2, 'w', 1, closefd=False)
            sys.argv = [str(ROOT / 'tools' / name), *map(str, args)]
            runpy.run_path(sys.argv[0], run_name='__main__')

        with tempfile.TemporaryFile('w+') as output:
            code = fork(call)
            output.seek(0)
            return code, output.read().strip()

    return run


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """Headless Chromium, one for all tests of a file."""
    if EXECUTABLE is None:
        pytest.skip('no Chromium on the PATH (apt-get install chromium)')
    browser = Chromium(tmp_path_factory.mktemp('chromium'))
    yield browser
    browser.close()
