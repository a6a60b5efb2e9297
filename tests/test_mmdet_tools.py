"""MMDetection's own tools on a config of this package, beside mmcv-lite, by ``python -m mmdet_ddetr``."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib
import pytest
import tomllib
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmdet_ddetr import __main__ as entry
from mmdet_ddetr.apis import find_config

ROOT = Path(__file__).parents[1]
NAME = 'deformable-detr-refine-twostage_lite0_shapes'
OPTIONS = ['--cfg-options', 'model.backbone.init_cfg=None', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
for split in ('train', 'val', 'test'):
    OPTIONS += [f'{split}_dataloader.num_workers=0', f'{split}_dataloader.persistent_workers=False']


@pytest.fixture(scope='module')
def folder(workspace):
    """The folder that the tools run in."""
    matplotlib.use('Agg')
    return workspace


@pytest.fixture
def run(folder, monkeypatch, capfd):
    """``run(tool, *arguments)``: in this process, as the command line does; returns all it printed."""

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, 'argv', [])
            patch.setattr(sys, 'path', ['', *sys.path])
            entry.main([str(argument) for argument in arguments])
        return ''.join(capfd.readouterr())

    return call


@pytest.fixture(scope='module', autouse=True)
def own_state():
    """Runs leave a scope, a logger and a visualizer behind, which the next file shall not find, nor this one."""
    kept = (DefaultScope, MMLogger, Visualizer)
    for cls in kept:
        cls._instance_dict.clear()
    yield
    for cls in kept:
        cls._instance_dict.clear()


@pytest.fixture
def checkpoint(folder, run):
    """One epoch by mmdet's train.py; once for the file."""
    path = folder / 'by_mmdet/epoch_1.pth'
    if not path.exists():
        run('mmdet::train', NAME, '--work-dir=by_mmdet', *OPTIONS)
    return path


@pytest.fixture
def predictions(folder, run, checkpoint):
    """What mmdet's test.py writes; once for the file."""
    path = folder / 'predictions.pkl'
    if not path.exists():
        assert 'coco/bbox_mAP' in run(
            'mmdet::test',
            NAME,
            checkpoint,
            '--work-dir=tested_by_mmdet',
            f'--out={path}',
            '--show-dir=pictures',
            *OPTIONS,
        )
    return path


# --- each tool that users run ----------------------------------------------------------------------------------------


def test_train_and_test(folder, checkpoint, predictions):
    assert torch.load(checkpoint, weights_only=True)['meta']['epoch'] == 1
    assert len(pickle.loads(predictions.read_bytes())) == 4
    assert len(list(folder.glob('tested_by_mmdet/*/pictures/**/*.*g'))) == 4


def test_print_config(run):
    assert "type='mmdet_ddetr.DeformableDETR'" in run('print_config', NAME)


def test_browse_dataset(folder, run):
    run('browse_dataset', NAME, '--output-dir=browsed', '--not-show')
    pictures = sorted(folder.glob('browsed/**/*.*g'))
    assert len(pictures) == 8
    assert cv2.imread(str(pictures[0])) is not None


@pytest.mark.slow
def test_analyze_results(folder, run, predictions):
    """It keeps of the train pipeline what loads, and looks for mmcv's loader, which ours is a subclass of."""
    run('analyze_results', NAME, predictions, 'analysed', '--topk=2', *OPTIONS)
    assert len(list(folder.glob('analysed/good/*.*g'))) == len(list(folder.glob('analysed/bad/*.*g'))) == 2


def test_confusion_matrix(folder, run, predictions):
    run('confusion_matrix', NAME, predictions, 'matrix')
    assert (folder / 'matrix/confusion_matrix.png').stat().st_size > 1000


def test_eval_metric(run, predictions):
    assert "{'coco/bbox_mAP': " in run('eval_metric', NAME, predictions)


def test_get_flops(run):
    """It traces the model with torch.jit; the number is that of mmengine's counter, which sees no operator of ours."""
    text = run('get_flops', NAME, '--num-images=1', *OPTIONS)
    assert re.search(r'Flops: *[\d.]+[MG]', text) and re.search(r'Params: *[\d.]+M', text)


@pytest.mark.slow
@pytest.mark.parametrize('task, unit', [('dataset', 'times per img'), ('dataloader', 'times per batch')])
def test_benchmark(run, task, unit):
    """Of the inference it measures on a GPU only."""
    options = ['--dataset-type=train', '--max-iter=6', '--log-interval=1', '--num-warmup=1']
    assert unit in run('benchmark', NAME, f'--task={task}', *options, *OPTIONS, 'train_dataloader.batch_size=1')


@pytest.mark.slow
def test_coco_error_analysis(folder, run, predictions):
    truth = 'data/shapes/annotations/val.json'
    run('eval_metric', NAME, predictions, '--cfg-options', 'val_evaluator.outfile_prefix=dumped')
    run('coco_error_analysis', 'dumped.bbox.json', 'errors', f'--ann={truth}', '--types', 'bbox')
    assert list(folder.glob('errors/bbox/**/*.png'))


def test_publish_model(folder, run, checkpoint):
    text = run('publish_model', checkpoint, 'published.pth')
    assert 'Key `optimizer` will be removed' in text and 'The published model is saved at published-' in text


def test_analyze_logs(folder, run, checkpoint):
    pytest.importorskip('seaborn')
    log = folder / 'log.json'
    log.write_text(''.join(json.dumps(dict(epoch=1, iter=i, step=i, time=i / 2)) + '\n' for i in (1, 2, 3)))
    assert 'average iter time: 1.0000 s/iter' in run('analyze_logs', 'cal_train_time', log, '--include-outliers')


@pytest.mark.slow
def test_robustness(folder, run, checkpoint):
    pytest.importorskip('imagecorruptions')
    corruption = ['--corruptions=gaussian_noise', '--severities', '1', '--out=robust.pkl']
    options = [option for option in OPTIONS if 'init_cfg' not in option]  # it has to be there for the tool
    run('test_robustness', NAME, checkpoint, *corruption, '--work-dir=robust', *options)
    assert (folder / 'robust.pkl').exists()


# --- which tool it is ------------------------------------------------------------------------------------------------


def test_names():
    ours, theirs = entry.list_tools('mmdet_ddetr'), entry.list_tools('mmdet')
    assert entry.find_tool('train') == entry.find_tool('mmdet_ddetr::train') == ours['train'] != theirs['train']
    assert entry.find_tool('mmdet::train.py') == theirs['train']
    assert entry.find_tool('browse_dataset').parent.name == 'analysis_tools'  # there is one in `mot`, too
    with pytest.raises(FileNotFoundError, match=r"^no tool 'brows_dataset'.* like browse_dataset"):
        entry.find_tool('brows_dataset')
    with pytest.raises(FileNotFoundError, match='; mmdet-ddetr lists them'):
        entry.find_tool('zzzz')


def test_a_tool_that_is_not_there(run):
    with pytest.raises(SystemExit, match=r"^mmdet-ddetr: no tool 'nothing-like-it'"):
        run('nothing-like-it')


COMMANDS = ('train', 'test', 'finetune', 'predict', 'explain', 'export', 'convert', 'check')


@pytest.mark.parametrize('command', COMMANDS)
def test_commands(run, capfd, monkeypatch, command):
    """Each is a tool, called as the user calls it; the program is the module."""
    with pytest.raises(SystemExit) as end:
        run(command, '-h')
    assert end.value.code == 0 and capfd.readouterr().out.startswith(f'usage: mmdet-ddetr {command} [-h]')
    assert re.search(rf'\b{command}\b', run())
    script = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']['mmdet-ddetr']
    monkeypatch.setattr(sys, 'argv', ['mmdet-ddetr'])
    getattr(entry, script.partition(':')[2])()
    assert 'usage: mmdet-ddetr' in capfd.readouterr().out


def test_check_is_finetune_that_stops(folder, run):
    text = run('check', '--data', 'data/shapes', '--work-dir', 'checked')
    assert '8 images' in text and 'Training' not in text
    with pytest.raises(SystemExit, match='^mmdet-ddetr check: .*nowhere'):
        run('check', '--data', 'nowhere')


def test_usage_lists_the_tools(run):
    for arguments in ((), ('-h',)):
        text = run(*arguments)
        assert '--install-hook' in text and ' finetune ' in text and ' browse_dataset ' in text


def test_usage_that_nobody_reads_to_the_end():
    """As in ``mmdet-ddetr --help | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    python = [sys.executable, '-m', 'mmdet_ddetr', '--help']
    done = subprocess.run(python, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, '')


def test_any_script_as_python_runs_it(folder, run):
    (folder / 'scripts').mkdir()
    (folder / 'scripts/helper.py').write_text('word = "found beside the script"\n')
    (folder / 'scripts/own.py').write_text(f"""
import sys
from helper import word
import mmdet.apis
print(word, sys.argv, __name__, '{NAME}' in sys.argv)
""")
    text = run('scripts/own.py', '--x', NAME)
    assert f"found beside the script ['scripts/own.py', '--x', '{NAME}'] __main__ True" in text


def test_names_of_configs_become_paths(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    assert entry._config_path(NAME) == entry._config_path(NAME + '.py') == str(find_config(NAME))
    assert entry._config_path('--work-dir=x') == '--work-dir=x'
    Path('detr_lite0_shapes.py').write_text('')
    assert entry._config_path('detr_lite0_shapes.py') == 'detr_lite0_shapes.py'


# --- the hook --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hook_is_written_and_removed(tmp_path, monkeypatch, run):
    monkeypatch.setattr(entry.start_hook, 'path', lambda: tmp_path / 'mmdet_ddetr_hook.pth')
    assert f'wrote {tmp_path}/mmdet_ddetr_hook.pth' in run('--install-hook')
    (line,) = (tmp_path / 'mmdet_ddetr_hook.pth').read_text().splitlines()  # Python runs lines that begin with import
    assert line.startswith('import ')
    code = 'import site, sys; site.addsitedir(sys.argv[1]); before = set(sys.modules); '
    code += 'assert "torch" not in before; import mmdet.apis; print("works", "mmdet_ddetr" in sys.modules)'
    python = [sys.executable, '-c', code, str(tmp_path)]
    done = subprocess.run(python, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert 'works True' in done.stdout, done.stderr
    run('--remove-hook')
    run('--remove-hook')  # again: nothing to do
    assert list(tmp_path.iterdir()) == []
