"""What the documentation tells a user to type exists: programs, files, options, settings, names."""

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tomllib
import torch
from documented import PAGES, ROOT, blocks, commands
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from mmdet_ddetr import __main__ as entry
from mmdet_ddetr.apis import find_config, get_config, list_configs, parse_options
from mmdet_ddetr.apis.complexity import build_detector
from mmdet_ddetr.apis.video_file import VideoFile
from mmdet_ddetr.datasets import read_image
from mmdet_ddetr.registry import HOOKS, MODELS

SHAPES = 'deformable-detr-refine-twostage_lite0_shapes'
PLACEHOLDERS = {'CONFIG': SHAPES, 'CHECKPOINT': 'epoch_1.pth', 'GPUS': '8', 'DIR': 'folder'}
OTHERS = {
    'mmcv',
    'openvino',
    'seaborn',
    'imagecorruptions',
    'opencv-python-headless',
    'torch-ms-deform-attn',
    'torchvision',
    'pre-commit',
}
OTHERS |= {'git+https://github.com/cocodataset/panopticapi.git'}  # not ours, but on an index or at that address
COMMANDS = commands()
SAVED = ('detect.py',)  # programs of a page itself
MMDET = entry.list_tools('mmdet')['train'].parents[1]


class Parsed(Exception):
    """Stops a tool after its arguments."""


@pytest.fixture
def parse(monkeypatch):
    """``parse(tool, arguments)``: what the tool makes of them; it fails where its ``-h`` does not list them."""
    original = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        raise Parsed(original(self, args, namespace))

    def call(path, arguments):
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
            patch.setattr(sys, 'path', [str(Path(path).parent), *sys.path])
            patch.setattr(sys, 'argv', [str(path), *arguments])
            patch.delitem(sys.modules, '_cli', raising=False)
            try:
                runpy.run_path(str(path), run_name='__main__')
            except Parsed as parsed:
                return parsed.args[0]
            except SystemExit:
                pytest.fail(f'{Path(path).name} does not take {arguments}')
        pytest.fail(f'{path} read no arguments')

    return call


def test_commands_are_found():
    texts = {command.text for command in COMMANDS}
    assert {'make demo', 'python tools/train.py CONFIG --amp'} <= texts and len(texts) > 60


@pytest.mark.parametrize('command', COMMANDS, ids=str)
def test_command(command, parse):
    words = [_without_placeholder(word) for word in command.words]
    if '...' in words:  # stands for arguments
        words = words[: words.index('...')]
        parse = lambda path, arguments: None  # noqa: E731
    for word in words:
        check_name(word)
    program, *arguments = words
    if program == 'export':
        return
    if program in ('compute-sanitizer',):
        program, *arguments = words[words.index('python') :]
    if program == 'sbatch':
        tool = next(word for word in arguments if word.endswith('.sh'))
        program, arguments = tool, arguments[arguments.index(tool) + 1 :]
    CHECKS.get(program, check_tool)(program, arguments, parse)


def _without_placeholder(word):
    bare = word.strip('[]')  # [CONFIG ...]: more of them
    return PLACEHOLDERS.get(bare, bare if bare == '...' else word)


def check_name(word):
    """A path of the checkout is there, and a name that looks like one of a config is one."""
    for part in re.split(r'[=,]', word):
        if re.match(r'(tools|benchmarks|demo|tests|csrc|configs|docs)/', part):
            assert (ROOT / part).exists() or (MMDET / part).exists(), part
        if re.fullmatch(r'(deformable-detr|detr|faster-rcnn)[\w-]*_[\w-]+(\.py)?', part):
            assert part.removesuffix('.py') in list_configs(), part


def check_python(program, arguments, parse):
    if arguments[:2] == ['-m', 'pytest']:
        return  # check_name has seen the paths
    if arguments[:2] == ['-m', 'mmdet_ddetr']:
        tool, *rest = arguments[2:] or ['-h']
        if tool in ('-h', '--install-hook', '--remove-hook') or tool == 'my_script.py':
            return
        check_arguments(tool, parse(entry.find_tool(tool), [entry._config_path(word) for word in rest]))
    elif arguments[0] == '-c':
        compile(arguments[1], 'command', 'exec')
    elif arguments[0] in SAVED:
        return
    elif arguments[0] == 'setup.py':
        assert arguments[1:] == ['build_ext', '--inplace']
    elif arguments[0].startswith('tests/'):
        return
    else:
        check_tool(arguments[0], arguments[1:], parse)


def check_tool(program, arguments, parse):
    """A script of the checkout; a launcher's script passes its arguments on to the tool of its name."""
    assert program.startswith(('tools/', 'benchmarks/', 'demo/')), f'{program} is not known to this test'
    if all(word.startswith('-') for word in arguments):  # named in a sentence, at most with an option
        path = ROOT / program if (ROOT / program).exists() else MMDET / program
        source = path.read_text()
        assert all(f"'{word}'" in source for word in arguments)
        return
    if program.endswith('.sh'):
        launcher, tool = re.fullmatch(r'tools/(dist|slurm)_(\w+)\.sh', program).groups()
        number = {'dist_train': 2, 'dist_test': 3, 'slurm_train': 2, 'slurm_test': 2}[f'{launcher}_{tool}']
        assert len(arguments) >= number
        kept = arguments[: 2 if tool == 'test' else 1]
        program, arguments = f'tools/{tool}.py', [*kept, *arguments[number:]]
    check_arguments(program, parse(ROOT / program, arguments))


def check_arguments(tool, parsed):
    """The settings exist in the config that they are meant for."""
    if parsed is None:
        return
    config, options = getattr(parsed, 'config', None), getattr(parsed, 'cfg_options', None)
    for key in parse_options(options) if isinstance(options, list) else options or {}:
        if key in ADDED:
            continue
        node, *path = [get_config(config), *key.split('.')]
        for name in path[:-1]:
            assert name in node, f'{tool}: {config} has no {key}'
            node = node[name]
        known = path[-1] in node or isinstance(node, ConfigDict) and 'type' in node  # or an argument of the type
        assert known, f'{tool}: {config} has no {key}'


# Settings that mmengine and this package read, and that no config has.
ADDED = {'runner_type', 'load_from', 'strategy.type', 'default_hooks.progress.type'}
ADDED |= {'model.encoder.num_cp', 'model.decoder.num_cp'}


def check_pip(program, arguments, parse):
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    declared = [*project['dependencies'], *sum(project['optional-dependencies'].values(), [])]
    known = OTHERS | {re.match(r'[\w-]+', requirement)[0] for requirement in declared}
    assert arguments[0] in ('install', 'uninstall')
    for word in arguments[1:]:
        if word.startswith('.'):
            extras = re.fullmatch(r'\.(?:\[([\w,-]+)\])?', word)[1] or ''
            assert set(filter(None, extras.split(','))) <= set(project['optional-dependencies']), word
        elif not word.startswith('-') and word != 'DIST':
            name = word if word in OTHERS else re.match(r'[\w-]+', word)[0]
            assert name in known, f'{name}: neither this checkout nor a package that it names'


def check_make(program, arguments, parse):
    makefile = (ROOT / 'Makefile').read_text()
    for word in arguments:
        pattern = rf'^{word.partition("=")[0]} \?=' if '=' in word else rf'^{word}:'
        assert re.search(pattern, makefile, re.MULTILINE), word


def check_mim(program, arguments, parse):
    mim = pytest.importorskip('mim.commands')
    verb, *rest = arguments
    package, *rest = rest or ['mmdet_ddetr']
    assert package in ('mmdet', 'mmdet_ddetr')
    if not rest:
        return
    if verb == 'run':
        tool, *rest = rest
        if rest:
            check_arguments(tool, parse(entry.find_tool(f'{package}::{tool}'), rest))
        else:
            entry.find_tool(f'{package}::{tool}')
    else:
        cli = sys.modules[f'{mim.__name__}.{verb}'].cli
        context = cli.make_context(verb, [package, *rest], resilient_parsing=False)
        left = context.params.get('other_args', ())
        assert not left, f'mim {verb} passes {left} on to the tool'


def check_program(program, arguments, parse):
    name, *rest = arguments or ['-h']
    tool, *first = entry.SHORT.get(name, [name])
    check_python(program, ['-m', 'mmdet_ddetr', tool, *first, *rest], parse)


CHECKS = {'mmdet-ddetr': check_program, 'python': check_python, 'pip': check_pip, 'make': check_make, 'mim': check_mim}


# --- code and links --------------------------------------------------------------------------------------------------

PYTHON = [(page, text) for page in PAGES for text in blocks(page, 'python')]


def _is_config(text):
    return re.match(r'(_base_|custom_hooks|visualizer|model|optim_wrapper) =', text)


@pytest.mark.parametrize('page, text', PYTHON, ids=lambda value: getattr(value, 'name', None))
def test_python(page, text, tmp_path):
    """Imports and names; configs are built. Programs run in the slow test below."""
    compile(text, str(page), 'exec')
    imports = re.findall(r'^(?:from|import) .*', text, re.MULTILINE)
    exec('\n'.join(imports), {})
    if not _is_config(text):
        return
    base = re.search(r"^_base_ = '([\w-]+\.py)'", text)
    folder = find_config(base[1]).parent.name if base else ''
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    file = tmp_path / 'configs' / folder / 'documented.py'
    file.write_text(text)
    config = Config.fromfile(file)
    for hook in config.get('custom_hooks', ()):
        HOOKS.build(hook)
    if '_base_' in text:
        with DefaultScope.overwrite_default_scope('mmdet'):
            MODELS.build(config.model)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    """Files and anchors are there; addresses are only well formed: no test asks the network."""
    text = page.read_text()
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if '://' in target:
            parts = urlsplit(target)
            assert parts.scheme == 'https' and re.fullmatch(r'[\w-]+(\.[\w-]+)+', parts.netloc), target
        if not target.startswith(('http', '#')):
            path, _, anchor = target.partition('#')
            assert (page.parent / path).exists(), target
            if anchor:
                titles = re.findall(r'^#+ (.*)', (page.parent / path).read_text(), re.MULTILINE)
                assert anchor in {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles}, target


def test_readme_links_every_page():
    text = (ROOT / 'README.md').read_text()
    assert [page.name for page in sorted((ROOT / 'docs').glob('*.md')) if f'docs/{page.name}' not in text] == []


def test_site_has_every_page():
    """A page in no table of contents is an error of `make docs`."""
    pages = [*(ROOT / 'docs').glob('*.md'), *ROOT.glob('*.md'), *(ROOT / 'csrc').rglob('*.md')]
    pages += [*(ROOT / 'benchmarks').rglob('*.md'), *(ROOT / 'docs/reference').glob('*.md')]
    listed = []
    for index in (ROOT / 'docs/index.md', ROOT / 'docs/reference/index.md'):
        for block in blocks(index, '{toctree}'):
            names = [re.sub(r'.*<(.*)>', r'\1', line) for line in block.splitlines() if line and line[0] != ':']
            listed += [(index.parent / f'{name}.md').resolve() for name in names]
    assert [str(page.relative_to(ROOT)) for page in pages if page not in [*listed, ROOT / 'docs/index.md']] == []


# --- commands that run here as they stand (slow) ---------------------------------------------------------------------

ELSEWHERE = {  # what a command matches -> why the test above only reads it
    r'^make|\bpip (un)?install': 'installs an environment',
    r'^mim ': 'needs an installed package: test_packaging.py runs mim',
    r'hf://|r50_|-checkpoint\.pth|load_from=|untrained|coco-panoptic': 'needs COCO, published weights or days',
    r'^tools/(dist|slurm)|^sbatch|NNODES|FSDP': 'needs many GPUs or Slurm: test_distributed.py starts two processes',
    r'benchmarks/': 'a measurement of minutes to hours',
    r'^compute-sanitizer|pytest|setup\.py|^export|argument_fuzz': 'needs a GPU or another build',
    r'my_small|my_r50|my_voc|make_shapes': 'test_packaging.py and test_your_own_config.py follow that page',
    r'my_data|work_dirs/mine|mine\.py|content.queries|detect\.py': 'test_first_pages.py follows those pages',
    r'bccd|BloodImage|demo|--data|work_dirs/\.\.\.': 'needs a training of minutes or data that is not here',
    r'AmpOptimWrapper|--amp': "mmengine's mixed precision asks for a GPU",
    r'num_cp=6': 'is for models of six layers',
    r'tools/explain.py': 'needs a detector that finds something: test_explain.py',
    r'hook$': 'changes the environment: test_mmdet_tools.py and test_packaging.py run it',
    r'^(tools|benchmarks)/\S+( -|$)|mmdet::train|^mim$|^python tools/\S+ CONFIG$': 'only named, in a sentence',
}
HERE = [command for command in COMMANDS if not any(re.search(reason, command.text) for reason in ELSEWHERE)]


@pytest.fixture(scope='module')
def sandbox(workspace, tmp_path_factory):
    """A checkout's tools beside data, a config of one short epoch, its checkpoint and a picture."""
    data, workspace = workspace / 'data', tmp_path_factory.mktemp('sandbox')  # its own: links lead into the checkout
    shutil.copytree(data, workspace / 'data')
    for name in ('tools', 'benchmarks', 'configs'):
        (workspace / name).symlink_to(ROOT / name)
    loaders = ''.join(
        f'{split}_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False)\n'
        for split in ('train', 'val', 'test')
    )
    (workspace / 'short.py').write_text(
        f"_base_ = '{find_config(SHAPES)}'\nmodel = dict(backbone=dict(init_cfg=None))\n"
        f'{loaders}train_cfg = dict(max_epochs=1, val_interval=1)\n'
    )
    (workspace / 'my_script.py').write_text('import sys\n\nimport mmdet.apis\n\nprint(sys.argv)\n')
    shutil.copy(next((workspace / 'data/shapes/images/val').iterdir()), workspace / 'photo.jpg')
    video = VideoFile(workspace / 'street.mp4', 10, (96, 96))
    for path in sorted((workspace / 'data/shapes/images/val').iterdir()):
        video.write(read_image(path))
    video.close()
    shell(workspace, 'python tools/train.py short.py --work-dir work_dirs/r50')
    model = build_detector(get_config('deformable-detr_r50_16xb2-50e_coco'))
    torch.save(dict(state_dict=model.state_dict(), meta={}), workspace / 'work_dirs/r50/epoch_50.pth')
    (workspace / 'work_dirs/demo').mkdir()
    shutil.copy(workspace / 'work_dirs/r50/epoch_1.pth', workspace / 'work_dirs/demo/best_coco_bbox_mAP_iter_1.pth')
    return workspace


def shell(folder, text):
    (folder / 'bin').mkdir(exist_ok=True)
    for name, arguments in (('python', ''), ('mmdet-ddetr', '-m mmdet_ddetr')):
        if not (folder / 'bin' / name).exists():
            (folder / 'bin' / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
            (folder / 'bin' / name).chmod(0o755)
    environment = dict(os.environ, PATH=f'{folder / "bin"}:{os.environ["PATH"]}', PYTHONPATH=str(ROOT))
    environment.update(OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    done = subprocess.run(['bash', '-c', text], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f'{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'


@pytest.mark.slow
@pytest.mark.parametrize('command', HERE, ids=str)
def test_command_runs(command, sandbox):
    text = re.sub(r'\[.*\]', '', command.text)
    for placeholder, value in {'CONFIG': 'short.py', 'CHECKPOINT': 'work_dirs/r50/epoch_1.pth'}.items():
        text = re.sub(rf'\b{placeholder}\b', value, text)
    shell(sandbox, text)


@pytest.mark.slow
def test_readme_infers(sandbox):
    """The one program of the README."""
    (program,) = (text for text in blocks(ROOT / 'README.md', 'python') if 'DDetrInferencer' in text)
    (sandbox / 'infer.py').write_text(program)
    shell(sandbox, 'python infer.py')
    assert len(list(sandbox.glob('out/vis/*.*g'))) == len(list(sandbox.glob('out/preds/*.json'))) == 2
