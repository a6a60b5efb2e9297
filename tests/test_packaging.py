"""The wheel, built from the source distribution, installed into an empty environment and driven by mim."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections import Counter
from email import message_from_string
from functools import partial
from pathlib import Path

import pytest
import tomllib
import yaml
from cuda_stand_ins import make_stand_ins
from documented import blocks

ROOT = Path(__file__).parents[1]
NAME = 'deformable-detr-refine-twostage_lite0_shapes'
IN_PROCESS = [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
IN_PROCESS += [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')]


def run(*command, cwd, check=True):
    """Run a command without this process's paths; return all it printed."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(('PYTHON', 'PYTEST'))}
    env.update(OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert not check or done.returncode == 0, f'{" ".join(command)}\n{done.stdout}'
    return done.stdout


def call_backend(hook, out_dir, cwd):
    """Call a hook of the build backend, as pip does, without making an isolated environment first; return its file."""
    code = f'from setuptools import build_meta as b; print(b.{hook}({str(out_dir)!r}))'
    return out_dir / run(sys.executable, '-c', code, cwd=cwd).strip().splitlines()[-1]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """The source distribution, unpacked: what it lacks, the wheel built from it lacks, too."""
    folder = tmp_path_factory.mktemp('source')
    shutil.unpack_archive(call_backend('build_sdist', folder, cwd=ROOT), folder)
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope='module')
def wheel(request, tmp_path_factory):
    """Built here, or that of a folder: MMDET_DDETR_WHEEL=dist, as `make dist` leaves it.

    Without the extension, whose compilation takes longer than all the tests of this file.
    """
    return find_or_build_wheel(request, tmp_path_factory, extension='0')


@pytest.fixture(scope='module')
def compiled_wheel(request, tmp_path_factory):
    """With the extension."""
    return find_or_build_wheel(request, tmp_path_factory, extension='1')


def find_or_build_wheel(request, tmp_path_factory, extension):
    if folder := os.environ.get('MMDET_DDETR_WHEEL'):
        (path,) = Path(folder).glob('*.whl')
        return path.resolve()
    source = request.getfixturevalue('source')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMDET_DDETR_EXT', extension)
        return call_backend('build_wheel', tmp_path_factory.mktemp('wheel'), cwd=source)


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
    """Python of a new environment: the wheel and nothing of the checkout.

    Its dependencies are those of the environment that runs the tests, by way of a .pth file: installing takes minutes.
    """
    folder = tmp_path_factory.mktemp('environment')
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder)
    python = folder / 'bin' / 'python'
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=folder).strip())
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', site, wheel, cwd=folder)
    # addsitedir also runs the .pth files in there; setuptools has one that stands in for distutils since Python 3.12
    (site / 'dependencies.pth').write_text(f'import site; site.addsitedir({sysconfig.get_path("purelib")!r})')
    return python


@pytest.fixture(scope='module')
def mim(environment, tmp_path_factory):
    """``mim(*args)``: run mim in an empty folder, the same for all tests of this file."""
    folder = tmp_path_factory.mktemp('user')

    def call(*args, check=True):
        return run(environment, '-m', 'mim', *args, cwd=folder, check=check)

    call.folder = folder
    return call


# --- what is in the wheel --------------------------------------------------------------------------------------------


def test_sdist_contents(source):
    """All that builds, tests and documents the package, as it is in the checkout."""
    folders = ('benchmarks', 'configs', 'csrc', 'demo', 'docs', 'requirements', 'tests', 'tools')
    files = [path for folder in folders for path in (ROOT / folder).rglob('*') if path.is_file()]
    names = [path.relative_to(ROOT) for path in files if '__pycache__' not in path.parts]
    names += map(
        Path, ('CITATION.cff', 'Dockerfile', 'LICENSE', 'Makefile', 'README.md', 'model-index.yml', 'setup.py')
    )
    assert [str(name) for name in names if not (source / name).is_file()] == []


def test_wheel_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        top_level = archive.read(next(name for name in names if name.endswith('top_level.txt'))).decode().split()
        metadata = message_from_string(
            archive.read(next(name for name in names if name.endswith('/METADATA'))).decode()
        )
    pages = [path for path in (ROOT / 'mmdet_ddetr').rglob('*') if path.suffix in ('.html', '.css', '.js', '.pth')]
    assert pages and {str(path.relative_to(ROOT)) for path in pages} <= set(names)
    assert top_level == ['mmdet_ddetr'], 'mim takes the first line for the package'
    assert metadata['Name'] == 'mmdet_ddetr', 'mim finds the files only if distribution and module have one name'
    version = ast.parse((ROOT / 'mmdet_ddetr/version.py').read_text()).body[-1].value.value
    assert metadata['Version'] == version
    always = [line for line in metadata.get_all('Requires-Dist') if 'extra ==' not in line]
    assert any(line.startswith('mmdet') for line in always)
    assert not any('mmcv' in line for line in always), 'it would be unpacked over a compiled mmcv'

    prefix = 'mmdet_ddetr/.mim/'
    packed = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    files = [path for folder in ('configs', 'tools') for path in (ROOT / folder).rglob('*') if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in files if '__pycache__' not in path.parts}
    assert packed == expected | {'model-index.yml'}


def test_config_basenames_are_unique():
    """mim looks for a config by its basename in the whole package."""
    counts = Counter(path.name for path in ROOT.glob('configs/**/*.py'))
    counts.update(path.name for path in ROOT.glob('mmdet_ddetr/**/*.py') if path.name in counts)
    assert [name for name, count in counts.items() if count > 1] == []


def test_editable_build_links_mim(source, tmp_path, monkeypatch):
    monkeypatch.setenv('MMDET_DDETR_EXT', '0')
    call_backend('build_editable', tmp_path, cwd=source)
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (source / 'mmdet_ddetr/.mim' / name).samefile(source / name)


def test_formatters_have_one_version():
    """pre-commit checks with what `make lint` checks with."""
    locked = dict(re.findall(r'^([\w-]+)==(\S+)', (ROOT / 'requirements/lock.txt').read_text(), re.MULTILINE))
    hooks = re.findall(r'dependencies: \[(\S+)==(\S+)\]', (ROOT / '.pre-commit-config.yaml').read_text())
    assert {name for name, _ in hooks} == {'ruff', 'clang-format'}
    assert all(locked[name] == version for name, version in hooks)


@pytest.mark.parametrize('group', ['docs', 'release'])
def test_tools_fit_the_lock_file(group):
    """What both files name is installed over one another: one version for each Python."""
    pattern = re.compile(r'^([\w.-]+)==(\S+)', re.MULTILINE)
    locked = pattern.findall((ROOT / 'requirements/lock.txt').read_text())
    tools = pattern.findall((ROOT / f'requirements/{group}.txt').read_text())
    names = {name for name, _ in locked}
    assert [pair for pair in tools if pair[0] in names and pair not in locked] == []
    declared = tomllib.loads((ROOT / 'pyproject.toml').read_text())['dependency-groups'][group]
    assert set(declared) <= {name for name, _ in tools}


# --- in its own environment, with mim --------------------------------------------------------------------------------


def test_import_is_from_the_wheel(environment, tmp_path):
    code = f'import mmdet_ddetr as m; print(m.__file__); print(m.get_config({NAME!r}).filename)'
    package, config = run(environment, '-c', code, cwd=tmp_path).strip().splitlines()[-2:]
    assert Path(package).is_relative_to(environment.parents[1])
    assert Path(config).is_relative_to(Path(package).parent / '.mim/configs/quickstart')


def test_the_program(environment, tmp_path):
    """From the wheel alone; a tool's errors and usage name the program."""
    code = 'from importlib.metadata import entry_points as e; e(group="console_scripts")["mmdet-ddetr"].load()()'
    text = run(environment, '-c', code, 'predict', '-h', cwd=tmp_path)
    assert text.startswith('usage: mmdet-ddetr predict [-h] --weights FILE')


@pytest.mark.slow
def test_mim_search(mim):
    text = mim('search', 'mmdet_ddetr', '--valid-config')
    models = {path.stem for path in ROOT.glob('configs/*/*_coco*.py')}
    assert models
    assert set(ast.literal_eval(text.strip().splitlines()[-1])) == models
    text = mim('search', 'mmdet_ddetr', '--model', 'deformable detr', '--sort', 'coco/box_ap', '--field', 'coco/box_ap')
    entries = yaml.safe_load((ROOT / 'configs/deformable_detr/metafile.yml').read_text())['Models']
    results = [result for entry in entries for result in entry.get('Results', ()) if result['Dataset'] == 'COCO']
    found = [float(value) for value in re.findall(r'coco/box_ap\W+([\d.]+)', text)]
    assert found == sorted((result['Metrics']['box AP'] for result in results), reverse=True)
    assert found[0] == 46.2


@pytest.mark.slow
def test_mim_train_test_resume(mim):
    """`mim run` makes the data, `mim train` runs two iterations, `mim test` evaluates, `mim train --resume` goes on."""
    mim('run', 'mmdet_ddetr', 'make_shapes', 'data/shapes', '--size=96', '--train=4', '--val=2', '--test=1')
    options = ['--gpus=0', '--work-dir=wd', '--seed=0', '--cfg-options', *IN_PROCESS]
    options += ['train_dataloader.batch_size=2', 'default_hooks.logger.interval=1', 'model.backbone.init_cfg=None']

    text = mim('train', 'mmdet_ddetr', NAME + '.py', *options, 'train_cfg.max_epochs=1')
    assert 'Epoch(train) [1][2/2]' in text
    assert 'Training finished successfully' in text
    checkpoint = mim.folder / 'wd/epoch_1.pth'

    text = mim('test', 'mmdet_ddetr', NAME + '.py', '-C', checkpoint, '--work-dir=tested', '--cfg-options', *IN_PROCESS)
    assert 'coco/bbox_mAP: ' in text
    assert 'Testing finished successfully' in text

    text = mim('train', 'mmdet_ddetr', NAME + '.py', '--resume', *options, 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1, iter: 2' in text
    assert 'Epoch(train) [2][2/2]' in text
    assert 'Epoch(train) [1]' not in text


def test_mim_run_reports_bad_data(mim):
    """Every tool is reachable, and its error reaches the user."""
    text = mim('run', 'mmdet_ddetr', 'finetune', '--data=nowhere', check=False)
    assert re.search(r'^finetune\.py: .*nowhere', text, re.MULTILINE)


@pytest.mark.slow
def test_mim_runs_mmdet_after_the_hook(environment, mim):
    """mim starts mmdet's tools by their path, so that nothing of this package could be imported before them."""
    shapes = ['make_shapes', 'data/shapes', '--size=96', '--train=4', '--val=2', '--test=1']
    run(environment, '-m', 'mmdet_ddetr', *shapes, cwd=mim.folder)
    config = run(environment, '-c', f'import mmdet_ddetr as m; print(m.get_config({NAME!r}).filename)', cwd=mim.folder)
    config = config.strip().splitlines()[-1]
    options = ['--work-dir=by-mmdet', '--cfg-options', *IN_PROCESS, 'model.backbone.init_cfg=None']
    options += ['train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=2']
    assert "No module named 'mmcv._ext'" in mim('train', 'mmdet', config, '--gpus=0', *options, check=False)
    run(environment, '-m', 'mmdet_ddetr', '--install-hook', cwd=mim.folder)
    try:
        assert 'Training finished successfully' in mim('train', 'mmdet', config, '--gpus=0', *options)
        text = mim('test', 'mmdet', config, '-C', mim.folder / 'by-mmdet/epoch_1.pth', '--gpus=0', *options)
        assert 'coco/bbox_mAP: ' in text
        mim('run', 'mmdet', 'browse_dataset', config, '--not-show', '--output-dir=browsed')
        assert list(mim.folder.glob('browsed/*'))
    finally:
        run(environment, '-m', 'mmdet_ddetr', '--remove-hook', cwd=mim.folder)


# --- in an empty environment of another Python, with another PyTorch --------------------------------------------------

OLDEST = re.search(r'"torch>=([\d.]+)"', (ROOT / 'pyproject.toml').read_text())[1] + '.0'
UNNEEDED = {'torch', 'transformers', 'tokenizers', 'onnx', 'onnxscript', 'onnxruntime', 'ruff', 'clang-format'}


def find_python(version):
    """The interpreter of a version, on the PATH or among pyenv's."""
    pyenv = sorted(Path.home().glob(f'.pyenv/versions/{version}.*/bin/python'))
    found = shutil.which(f'python{version}')
    return pyenv[-1] if pyenv else found or pytest.skip(f'there is no Python {version}')


def packages_for(python, cwd):
    """Lines of the lock file that this Python wants, without PyTorch and what only tests and other formats need."""
    code = (
        'import sys; from pip._vendor.packaging.requirements import Requirement as R\n'
        'for line in sys.argv[1:]:\n r = R(line)\n if not r.marker or r.marker.evaluate(): print(r.name, r.specifier)'
    )
    lines = (ROOT / 'requirements/lock.txt').read_text().splitlines()
    wanted = [line.split() for line in run(python, '-c', code, *lines, cwd=cwd).splitlines()]
    return [f'{name}{version}' for name, version in wanted if name not in UNNEEDED]


@pytest.mark.slow
@pytest.mark.parametrize('version, torch', [('3.10', f'=={OLDEST}'), ('3.13', '')], ids=['oldest', 'newest'])
def test_another_python_and_torch(version, torch, compiled_wheel, tmp_path, monkeypatch):
    """`mim train` and `mim test` from the one wheel, which was built with this Python and this PyTorch. Gigabytes."""
    run(find_python(version), '-m', 'venv', tmp_path / 'env', cwd=tmp_path)
    python = tmp_path / 'env/bin/python'

    def pip(*arguments):
        return run(python, '-m', 'pip', 'install', '-q', '--no-deps', '--no-cache-dir', *arguments, cwd=tmp_path)

    pip(*packages_for(python, tmp_path), compiled_wheel)
    try:
        pip(f'torch{torch}')
    except AssertionError as error:
        pytest.skip(f'pip has no such PyTorch: {str(error).strip().splitlines()[-1]}')
    folder = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=tmp_path).strip())
    if runpy.run_path(str(folder / 'torch/version.py'))['cuda']:  # NVIDIA's libraries, which a CPU needs by name alone
        make_stand_ins(folder / 'torch/lib', tmp_path / 'stand_ins')
        monkeypatch.setenv('LD_LIBRARY_PATH', str(tmp_path / 'stand_ins'))

    found = run(python, '-c', 'import torch, mmdet_ddetr.ops._load as l; print(l.EXTENSION_LOADED)', cwd=tmp_path)
    assert found.split()[-1] == 'True'
    assert 'finetune' in run(tmp_path / 'env/bin/mmdet-ddetr', '--help', cwd=tmp_path)
    mim = partial(run, python, '-m', 'mim', cwd=tmp_path)
    mim('run', 'mmdet_ddetr', 'make_shapes', 'data/shapes', '--size=96', '--train=4', '--val=2', '--test=2')
    options = ['--gpus=0', '--work-dir=wd', '--cfg-options', *IN_PROCESS]
    short = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=2', 'model.backbone.init_cfg=None']
    assert 'Training finished successfully' in mim('train', 'mmdet_ddetr', f'{NAME}.py', *options, *short)
    text = mim('test', 'mmdet_ddetr', f'{NAME}.py', '-C', tmp_path / 'wd/epoch_1.pth', *options)
    assert 'coco/bbox_mAP: ' in text and 'Testing finished successfully' in text
    shutil.rmtree(tmp_path)


# --- docs/your_own_config.md -----------------------------------------------------------------------------------------

PAGE = ROOT / 'docs' / 'your_own_config.md'
IN_A_MOMENT = [*IN_PROCESS, 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']
IN_A_MOMENT += ['train_dataloader.dataset.indices=2', 'val_dataloader.dataset.indices=1']
SMALLER = ['model.backbone.depth=18', 'model.neck.in_channels=[128,256,512]', 'model.encoder.num_layers=1']


@pytest.fixture(scope='module')
def page(environment, tmp_path_factory):
    """``page(command)``: run a command of the page in a folder with its configs, outside of any checkout."""
    folder = tmp_path_factory.mktemp('page')
    for block in blocks(PAGE, 'python'):
        if match := re.match(r'# (\S+\.py)\n', block):
            (folder / match[1]).write_text(block)

    def call(command, *options):
        program, *arguments = command.split()
        assert program == 'python' and command in PAGE.read_text()
        return run(environment, *arguments, *options, cwd=folder)

    call('python -m mmdet_ddetr make_shapes data/shapes --train 40 --val 8 --test 8')
    call.folder = folder
    return call


def test_the_page_has_no_other_block(page):
    """Every block is a file that a test below reads, or a command that it runs."""
    files = ['my_r50.py', 'my_r50_from_coco.py', 'my_small.py', 'my_voc.py']  # the last: in test_your_own_config.py
    assert sorted(path.name for path in page.folder.glob('*.py')) == files
    assert len(blocks(PAGE, 'python')) == 5
    assert [len(block.splitlines()) for block in blocks(PAGE, 'bash')] == [1, 3, 1, 1]


@pytest.mark.slow
def test_a_config_from_one_of_ours(page, environment):
    text = page('python -m mmdet_ddetr train my_small.py --work-dir work_dirs/my_small', '--cfg-options', *IN_A_MOMENT)
    assert 'Epoch(train) [1][1/1]' in text and 'Failed to search registry' not in text
    text = page(
        'python -m mmdet_ddetr test my_small.py work_dirs/my_small/epoch_1.pth',
        '--cfg-options',
        *IN_PROCESS,
        'test_dataloader.dataset.indices=2',
    )
    assert 'coco/bbox_mAP: ' in text
    text = page('python -m mmdet_ddetr print_config my_small.py')
    assert "type='mmdet_ddetr.DeformableDETR'" in text and "'data/shapes/annotations/test.json'" in text

    code = next(block for block in blocks(PAGE, 'python') if not block.startswith('#'))
    run(environment, '-c', code, cwd=page.folder)
    whole = (page.folder / 'my_small_whole.py').read_text()
    assert 'num_classes=5' in whole and '_base_' not in whole


@pytest.mark.slow
def test_a_config_from_one_of_mmdets(page, environment):
    """Its model smaller, as a step of R50 at 800 px takes long."""
    options = ['--cfg-options', *IN_A_MOMENT, *SMALLER]
    text = page('python -m mmdet_ddetr train my_r50.py --work-dir work_dirs/my_r50', *options)
    assert 'Epoch(train) [1][1/1]' in text
    assert (page.folder / 'work_dirs/my_r50/epoch_1.pth').is_file()
    code = 'import mmdet_ddetr; print(mmdet_ddetr.get_config("my_r50_from_coco.py").load_from)'
    assert run(environment, '-c', code, cwd=page.folder).strip().endswith('_r50_coco.pth')
