"""What the hooks show: progress, tables, curves, pictures, memory, learning rates."""

import csv
import ctypes
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from training_case import CLASSES, Do, fork, make_config, train, write_data

from mmdet_ddetr.hooks import LearningCurvesHook, MemoryHook, ProgressBarHook
from mmdet_ddetr.hooks.optim_report import parameter_table
from mmdet_ddetr.hooks.progress_bar import _clock, evaluations_left


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, mode='tensor'):
        if mode == 'loss':
            return dict(loss=(self.weight * 3).sum())
        return [x]


class Accuracy(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(accuracy=0.25)


def make_runner(tmp_path, name, train_cfg, hook):
    data = torch.utils.data.DataLoader([dict(x=float(i)) for i in range(4)], batch_size=1)
    return Runner(
        Toy(),
        work_dir=str(tmp_path),
        train_dataloader=data,
        val_dataloader=data,
        train_cfg=train_cfg,
        val_cfg=dict(),
        val_evaluator=Evaluator(Accuracy()),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None),
        custom_hooks=[hook],
        experiment_name=name,
    )


def test_lines(tmp_path, capsys):
    hook = ProgressBarHook(metric='accuracy', interval=0)
    runner = make_runner(tmp_path, 'test_lines', dict(by_epoch=True, max_epochs=3, val_interval=2), hook)
    capsys.readouterr()
    runner.train()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    progress = [line.split(', ')[:2] for line in lines]
    iterations = [(1 + i // 4, i + 1) for i in range(12)]
    iterations.insert(8, (2, 8))  # a line after each evaluation, too: after the second epoch and at the end
    iterations.append((3, 12))
    assert progress == [[f'epoch {epoch}/3', f'iteration {i}/12'] for epoch, i in iterations]
    assert all(', loss 3.00, ' in line for line in lines)
    assert ['accuracy 0.250' in line for line in lines] == [False] * 8 + [True] * 6
    assert lines[-1].endswith('0:00 left')
    assert 'Epoch(train)' not in captured.out
    with open(runner.logger.log_file) as log:
        text = log.read()
    assert text.count('Epoch(train)') == 12 and 'accuracy: 0.2500' in text
    levels = [h.level for h in runner.logger.handlers if not isinstance(h, logging.FileHandler)]
    assert levels == [logging.INFO]  # as before


def test_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    hook = ProgressBarHook(metric='accuracy')
    runner = make_runner(tmp_path, 'test_bar', dict(by_epoch=False, max_iters=5, val_interval=5), hook)
    capsys.readouterr()
    monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
    runner.train()
    shown = capsys.readouterr().err
    assert '\r' in shown and '100%' in shown and 'iteration 5/5, loss 3.00, accuracy 0.250' in shown
    assert hook.bar is None


def test_evaluating_alone_is_quiet(tmp_path, capsys):
    runner = make_runner(tmp_path, 'test_val', dict(by_epoch=True, max_epochs=1), ProgressBarHook(interval=0))
    capsys.readouterr()
    runner.val()
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('loop_type', [EpochBasedTrainLoop, IterBasedTrainLoop])
def test_evaluations_left(loop_type):
    """Against mmengine's own condition, step by step."""
    for last in (1, 5, 6):
        for begin in (1, 3, 9):
            for interval in (1, 2, 4, 7):
                due = [s for s in range(1, last + 1) if s >= begin and (s % interval == 0 or s == last)]
                for done in range(last + 1):
                    loop = loop_type.__new__(loop_type)
                    loop._runner = SimpleNamespace(val_loop=object())
                    loop._epoch = loop._iter = done
                    loop._max_epochs = loop._max_iters = last
                    loop.val_begin, loop.val_interval = begin, interval
                    assert evaluations_left(loop) == sum(step > done for step in due), (last, begin, interval, done)
    loop._runner = SimpleNamespace(val_loop=None)
    assert evaluations_left(loop) == 0


@pytest.mark.parametrize(('seconds', 'text'), [(0.2, '0:00'), (59.6, '1:00'), (754, '12:34'), (3723, '1:02:03')])
def test_clock(seconds, text):
    assert _clock(seconds) == text


# ------------------------------------------------------------ what a training leaves behind


def everything(data, work_dir, changes=None):
    """A training of six iterations with an evaluation after three and after six, and all hooks."""
    return make_config(
        data,
        work_dir,
        {
            'log_level': 'INFO',
            'train_cfg.max_epochs': 2,
            'train_cfg.val_interval': 1,
            'default_hooks.logger.interval': 1,
            'default_hooks.curves': dict(_delete_=True, type='mmdet_ddetr.LearningCurvesHook', interval=1),
            'default_hooks.pictures': dict(
                _delete_=True, type='mmdet_ddetr.SamplePicturesHook', n_images=2, score_thr=0.0
            ),
            'default_hooks.memory': dict(type='mmdet_ddetr.MemoryHook', interval=1, max_history=2),
            'log_processor.window_size': 2,
            **(changes or {}),
        },
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Work directory of such a training, interrupted between its epochs; the data are in ``data``."""
    folder = tmp_path_factory.mktemp('trained')
    write_data(folder / 'data')
    cfg = everything(folder / 'data', folder)

    def fail(runner):
        raise KeyError('a mistake')

    assert fork(train, cfg, [Do('before_train_iter', 4, fail)]) == 1
    assert fork(train, cfg, resume=True) == 0
    return folder


def scalars(folder: Path) -> list[dict]:
    files = sorted(folder.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_evaluation_table(trained):
    """The figures are CocoMetric's, which come to the scalars by another way; the lowest class comes first."""
    evaluations = [entry for entry in scalars(trained) if 'coco/bbox_mAP' in entry]
    files = sorted((trained / 'evaluation').iterdir())
    assert [file.name for file in files] == ['iter_3.csv', 'iter_6.csv']
    for file, metrics in zip(files, evaluations, strict=True):
        header, total, *classes = csv.reader(file.read_text().splitlines())
        assert header == ['class', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
        keys = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
        figures = [metrics[f'coco/bbox_{key}'] for key in keys]
        assert total == ['all (coco/bbox)', *(f'{v:.3f}' if v >= 0 else '-' for v in figures)]
        assert {row[0]: float(row[1]) for row in classes} == {
            name: metrics[f'coco/{name}_precision'] for name in CLASSES
        }
        assert float(classes[0][1]) <= float(classes[1][1])
        assert total[-1] == classes[0][-1] == '-'  # there are no large boxes
    log = '\n'.join(file.read_text() for file in trained.glob('*/*.log'))
    assert f'  {"dark":<15}' in log and '| category |' not in log


def test_learning_curves(trained):
    """A picture, and in the checkpoint the points of the whole training, before and after the interruption."""
    picture = cv2.imread(str(trained / 'curves.png'))
    assert picture.shape == (450, 1200, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    info = torch.load(trained / 'epoch_2.pth', weights_only=False)['message_hub']['runtime_info']
    losses = info['curve/losses']
    assert set(losses) == {'loss', 'loss_cls', 'loss_bbox', 'loss_iou'}
    logged = {entry['iter']: entry for entry in scalars(trained) if 'loss' in entry}
    iterations, values = losses['loss']
    assert iterations == [1, 2, 3, 4, 5, 6]
    assert values[0] == pytest.approx(logged[1]['loss'])
    evaluations, _ = info['curve/metrics']['coco/bbox_mAP']
    assert evaluations == [3]  # a checkpoint is written before its evaluation


@pytest.mark.parametrize(('interval', 'points'), [(50, [5, 10, 15, 16]), (10, [*range(1, 11), 16])])
def test_loss_of_a_short_training(interval, points):
    """It has a curve, too, where fewer iterations are made than a point averages; hand-computed means."""
    hook, hub = LearningCurvesHook(interval), MessageHub(f'loss of {interval}')
    runner = SimpleNamespace(message_hub=hub, max_iters=16)
    for runner.iter in range(16):
        hub.update_scalar('train/loss', float(runner.iter))
        hook.after_train_iter(runner, runner.iter)
    iterations, values = hub.get_info('curve/losses')['loss']
    assert iterations == points
    means = {50: [2.0, 7.0, 12.0, 13.0], 10: [0.0, *(float(i) for i in range(1, 10)), 10.5]}
    assert values == means[interval]


def test_sample_pictures(trained):
    """The same two images after each evaluation; every box of the ground truth is drawn, and only there."""
    files = sorted(
        trained.glob('*/vis_data/vis_image/*.png'),
        key=lambda file: file.stem.split('_')[::-1],  # both runs have one folder where they start in the same second
    )
    assert [file.name for file in files] == ['sample_0_3.png', 'sample_2_3.png', 'sample_0_6.png', 'sample_2_6.png']
    picture, image = cv2.imread(str(files[0])), cv2.imread(str(trained / 'data/0.png'))
    scale = 8  # 64 px are enlarged to 512
    height, width = image.shape[0] * scale, image.shape[1] * scale
    assert picture.shape == (height + 26, 2 * (width + 8), 3)
    truth = picture[22:-4, 4 : width + 4]
    plain = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    coco = json.loads((trained / 'data/annotations.json').read_text())
    boxes = [a['bbox'] for a in coco['annotations'] if a['image_id'] == 0]
    touched = (truth != plain).any(-1)
    near = np.zeros_like(touched)
    for x, y, w, h in boxes:
        x1, y1, x2, y2 = (v * scale for v in (x, y, x + w, y + h))
        assert touched[y2 - 1, x1:x2].all() and touched[y1:y2, x2 - 1].all()
        near[max(y1 - 20, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 60] = True
    assert not touched[~near].any()


def test_memory(trained):
    """Both figures are in the log, and no more of each value is remembered than was asked for."""
    entries = [entry for entry in scalars(trained) if 'loss' in entry]
    assert all(50 < entry['host_memory'] < 1e5 and entry['worker_memory'] == 0 for entry in entries)
    hub = torch.load(trained / 'epoch_2.pth', weights_only=False)['message_hub']
    lengths = {len(history.data[0]) for key, history in hub['log_scalars'].items() if key.startswith('train/')}
    assert lengths == {2}


def test_learning_rates_are_shown(trained):
    log = max(trained.glob('*/*.log')).read_text()
    assert 'AdamW, 2 images a step (processes: 1, images in a batch: 2, batches accumulated: 1)' in log
    assert '  backbone ' in log


def test_parameter_table():
    """Every group with its rates, those of before the warm-up; frozen parameters; a key that matches nothing."""
    model = torch.nn.ModuleDict(
        dict(backbone=torch.nn.Linear(2, 3), neck=torch.nn.Linear(3, 1), stem=torch.nn.Linear(5, 1, bias=False))
    )
    model.stem.requires_grad_(False)
    groups = [
        dict(params=[model.backbone.weight], lr=1e-9, initial_lr=2e-5, weight_decay=1e-4),
        dict(params=[model.backbone.bias], lr=2e-5, weight_decay=0.0),
        dict(params=model.neck.parameters(), lr=2e-4, weight_decay=1e-4),
    ]
    table = parameter_table(model, torch.optim.AdamW(groups), ['backbone', 'back', 'sampling_offsets'])
    assert [line.split() for line in table.splitlines()[1:]] == [
        ['(others)', '2', '4', '0.0002', '0.0001'],
        ['(others)', '1', '5', 'frozen', '-'],
        ['back', '0', '0', '-', '-'],  # the longest key counts
        ['backbone', '1', '3', '2e-05', '0'],
        ['backbone', '1', '6', '2e-05', '0.0001'],
        ['sampling_offsets', '0', '0', '-', '-'],
    ]


def test_tensorboard(tmp_path):
    """Losses, memory, figures and pictures, through mmengine's backend."""
    pytest.importorskip('tensorboard')
    write_data(tmp_path / 'data')
    backends = [dict(type='TensorboardVisBackend')]
    assert fork(train, everything(tmp_path / 'data', tmp_path, {'visualizer.vis_backends': backends})) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tmp_path.glob('*/vis_data')))).Reload()
    tags = events.Tags()
    assert {'loss', 'lr', 'host_memory', 'coco/bbox_mAP', 'coco/dark_precision'} <= set(tags['scalars'])
    assert len(events.Scalars('loss')) == 6 and all(math.isfinite(event.value) for event in events.Scalars('loss'))
    assert tags['images'] == ['sample_0', 'sample_2']


def test_hooks_can_be_left_out(tmp_path):
    """``default_hooks.<name>=None``, for each of this project's."""
    write_data(tmp_path / 'data')
    cfg = everything(tmp_path / 'data', tmp_path, {'train_cfg.max_epochs': 1})
    ours = [name for name, hook in cfg.default_hooks.items() if hook and hook.type.startswith('mmdet_ddetr.')]
    assert len(ours) >= 9
    cfg.default_hooks.update(dict.fromkeys(ours))
    assert fork(train, cfg) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made - {'data', 'losses.txt', 'detr_runtime.py'} == {
        path.name for path in tmp_path.glob('*_*') if path.is_dir()
    }
    assert not list(tmp_path.glob('*/vis_data/vis_image'))


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='not Linux')
def test_memory_is_given_back():
    """Small buffers that stay keep the C library from shrinking its heap by itself."""
    if not hasattr(ctypes.CDLL(None), 'malloc_trim'):
        pytest.skip('not glibc')

    def run():
        hook, kept, large = MemoryHook(), [], []
        for _ in range(2000):
            large.append(bytes(100_000))
            kept.append(bytes(5_000))
        large.clear()
        before = hook.process.memory_info().rss
        hook.trim()
        assert hook.process.memory_info().rss < before - 100e6

    assert fork(run) == 0
