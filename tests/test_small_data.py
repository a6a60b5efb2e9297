"""benchmarks/small_data.py: what it trains, what a training leaves, and the table and plot of that."""

import json
import sys
from concurrent.futures import Future
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from training_case import write_data

from mmdet_ddetr.datasets import find_data
from mmdet_ddetr.testing import make_batch, without_download

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))

import small_data  # noqa: E402
from small_data import DEFAULT, NAMES, OURS, PEERS, SHAPES  # noqa: E402

MODELS_THERE = [OURS, *sorted(path.stem for path in PEERS.glob('*.py'))]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Six images to train on and six to test on, in Roboflow's layout."""
    root = tmp_path_factory.mktemp('small') / 'rectangles'
    for split in ('train', 'valid', 'test'):
        write_data(root / split)
        (root / split / 'annotations.json').rename(root / split / '_annotations.coco.json')
    return root


def config_of(name, data, own=DEFAULT):
    return small_data.config_of(small_data.parse_model(name), find_data(data, data.parent / 'made'), own)


def test_every_model_of_the_table_has_a_config():
    assert set(NAMES) <= set(MODELS_THERE)


FAST = ('ours', 'atss', 'faster_rcnn')


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in MODELS_THERE]
)
def test_peers_are_mmdet_s_with_what_is_ours_else(name, data):
    cfg, ours = config_of(name, data), config_of(OURS, data)
    assert cfg.train_dataloader == ours.train_dataloader and cfg.param_scheduler == ours.param_scheduler
    assert cfg.model.data_preprocessor == ours.model.data_preprocessor
    assert cfg.get('load_from') == ('drawings://lite0' if name == OURS else None)
    if cfg.model.backbone.type == ours.model.backbone.type:
        for key in ('arch', 'frozen_stages', 'norm_eval', 'init_cfg'):
            assert cfg.model.backbone[key] == ours.model.backbone[key]
    init_default_scope('mmdet')
    model = MODELS.build(without_download(cfg.model)).train()
    assert any(cls.__module__.startswith('mmdet_ddetr.') for cls in type(model).__mro__) == (name == OURS)
    model.init_weights()

    torch.manual_seed(0)
    inputs, samples = make_batch([(64, 96), (96, 64)], [3, 0], num_classes=2)
    for sample in samples:
        del sample.gt_instances.masks  # RTMDet's assigner would use them
    losses, _ = model.parse_losses(model.loss(inputs, samples))
    losses.backward()
    assert torch.isfinite(losses)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    found = [result.pred_instances for result in model.eval().predict(inputs, samples)]
    assert all(len(instances) <= 100 and instances.bboxes.shape[1] == 4 for instances in found)


def test_learning_rates_follow_the_images_of_a_step(data):
    four, eight = (config_of('atss', data, own) for own in (DEFAULT, small_data.CONFIGS[SHAPES]))
    assert (four.train_dataloader.batch_size, eight.train_dataloader.batch_size) == (4, 8)
    rule = {'AdamW': 2**0.5, 'SGD': 2}[four.optim_wrapper.optimizer.type]
    assert eight.optim_wrapper.optimizer.lr == pytest.approx(four.optim_wrapper.optimizer.lr * rule)


class InThisProcess:
    """In place of a pool of processes."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(small_data, 'ProcessPoolExecutor', InThisProcess)
    for name in ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY'):
        monkeypatch.setenv(name, '1')  # restored after the benchmark has set it


@pytest.mark.slow
def test_a_training_leaves_its_line(data, tmp_path, in_this_process):
    """The tests' process is older than the minutes given: there is time for the two iterations at least."""
    options = ['--models', 'tiny=retinanet,model.bbox_head.stacked_convs=1', '--minutes', '0.01', '--threads', '1']
    args = small_data.parse_args([*options, '--data', str(data), '--out', str(tmp_path)])
    assert small_data.run_all(args) == 0
    (run,) = small_data.read_results(tmp_path)
    assert (run['model'], run['data'], run['minutes'], run['seed']) == ('tiny', 'rectangles', 0.01, 0)
    assert run['options'] == ['model.bbox_head.stacked_convs=1']
    assert (run['iterations'], run['images']) == (2, 4)
    assert [point['iteration'] for point in run['curve']] == [2]
    assert 0 <= run['curve'][0]['AP'] <= 1 and 0 < run['curve'][0]['minutes'] <= run['took']
    assert not list(tmp_path.rglob('*.pth'))


def line(model='ours', minutes=5, seed=0, values=(0.1, 0.4), data='bccd', **changes):
    curve = [
        dict(minutes=minutes * (i + 1) / len(values), iteration=i, **{'AP': ap, 'AP50': 2 * ap, 'small-object AP': ap})
        for i, ap in enumerate(values)
    ]
    run = dict(model=model, config=model, options=[], data=data, minutes=minutes, seed=seed, curve=curve)
    about = dict(
        threads=2,
        clock='wall',
        lr=1e-3,
        images=4,
        parameters=1_200_000,
        iterations=100 * minutes,
        machine='a processor; torch 2',
        date='2026-11-27',
    )
    return run | about | changes


def test_what_is_there_is_not_trained_again_and_a_failure_stops_nothing(tmp_path, monkeypatch, in_this_process, capsys):
    trained = []

    def train(model, data, minutes, seed, threads, clock, out):
        trained.append((model.name, minutes, seed))
        if model.name == 'atss':
            raise RuntimeError('no such luck')
        return small_data.request_of(model, data, minutes, seed, threads, clock)

    monkeypatch.setattr(small_data, 'train', train)
    (tmp_path / 'results.jsonl').write_text(json.dumps(line(threads=1)) + '\n')
    options = ['--models', 'ours', 'atss', 'dino', '--data', 'else/bccd', '--minutes', '5', '--threads', '1']
    args = small_data.parse_args([*options, '--seeds', '0', '1', '--out', str(tmp_path)])
    assert small_data.run_all(args) == 2
    assert trained == [('atss', 5, 0), ('dino', 5, 0), ('ours', 5, 1), ('atss', 5, 1), ('dino', 5, 1)]
    assert 'atss on else/bccd: RuntimeError: no such luck' in capsys.readouterr().err
    del trained[:]
    small_data.run_all(args)
    assert trained == [('atss', 5, 0), ('atss', 5, 1)]
    args.threads = 2  # other trainings
    small_data.run_all(args)
    assert ('ours', 5, 0) in trained


def test_table_and_plot_of_given_lines(tmp_path):
    runs = [
        line('retinanet', values=(0.05, 0.2), iterations=480),
        line('retinanet', minutes=15, values=(0.1, 0.3, 0.46)),
        line(seed=0, values=(0.1, 0.4)),
        line(seed=1, values=(0.1, 0.5), date='2026-11-28'),
        line(data='shapes', values=(0.6,)),
    ]
    (tmp_path / 'results.jsonl').write_text(''.join(json.dumps(run) + '\n' for run in runs))
    text = small_data.draw(tmp_path)
    assert (tmp_path / 'small_data.md').read_text() == text + '\n'
    header = (
        '| model | parameters | learning rate | 5 min: iterations | AP | AP50 | 15 min: iterations | AP | AP50 |\n'
        '| -- | -- | -- | -- | -- | -- | -- | -- | -- |\n'
    )
    assert text == (
        'bccd, test split, minutes, seeds 0, 1; a processor; torch 2; 2026-11-27 to 2026-11-28\n\n'
        + header
        + '| RetinaNet | 1.20 M | 0.001 | 480 | 0.200 | 0.400 | 1500 | 0.460 | 0.920 |\n'
        '| mmdet_ddetr | 1.20 M | 0.001 | 500 | 0.450 (0.400-0.500) | 0.900 (0.800-1.000) |  |  |  |\n\n'
        'shapes, test split, minutes, seed 0; a processor; torch 2; 2026-11-27\n\n'
        '| model | parameters | learning rate | 5 min: iterations | AP | AP50 |\n| -- | -- | -- | -- | -- | -- |\n'
        '| mmdet_ddetr | 1.20 M | 0.001 | 500 | 0.600 | 1.200 |'
    )
    assert cv2.imread(str(tmp_path / 'small_data.png')).shape[1] > 800  # two panels


def test_an_unknown_model_is_told(capsys):
    with pytest.raises(SystemExit):
        small_data.parse_args(['--models', 'retinanot'])
    assert "no model 'retinanot': ours, atss, deformable_detr, dino, faster_rcnn," in capsys.readouterr().err
