"""ProgressBarHook: its line says the truth, and the log goes on to its file."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmdet_ddetr.hooks import ProgressBarHook
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
