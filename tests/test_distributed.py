"""Two processes, joined by gloo on the CPU, train as one process with as large a batch does."""

import copy
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch.distributed.fsdp import FullyShardedDataParallel
from training_case import ROOT, Do, fork, losses, make_config, parallel, ranks, train, write_data

from mmdet_ddetr.apis.scale_lr import scale_lr
from mmdet_ddetr.heads import SetHead
from mmdet_ddetr.hooks.signals import EXIT_CODE

# What makes two processes differ from one by more than rounding: batch statistics, dropout of its own in each process,
# images padded to each other's size, and Adam, for which a gradient of rounding errors counts as much as any other.
COMPARABLE = {
    'model.backbone.norm_eval': True,
    'model.encoder.layer_cfg.self_attn_cfg.dropout': 0.0,
    'model.encoder.layer_cfg.ffn_cfg.ffn_drop': 0.0,
    'model.decoder.layer_cfg.self_attn_cfg.dropout': 0.0,
    'model.decoder.layer_cfg.cross_attn_cfg.dropout': 0.0,
    'model.decoder.layer_cfg.ffn_cfg.ffn_drop': 0.0,
    'train_dataloader.batch_sampler': None,
    'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=0.01),
    'optim_wrapper.clip_grad': dict(max_norm=1.0),
}


def comparable(data, work_dir, changes=None) -> Config:
    cfg = make_config(data, work_dir, {**COMPARABLE, **(changes or {})})
    del cfg.train_dataloader.dataset.pipeline[3]  # the crop, after which images differ in size
    return cfg


def final_weights(work_dir: Path) -> dict:
    return torch.load(work_dir / 'epoch_3.pth', weights_only=False)['state_dict']


def mean_losses(work_dir: Path, names: list[str]) -> dict[int, float]:
    runs = [losses(work_dir, name) for name in names]
    assert all(run.keys() == runs[0].keys() for run in runs)
    return {i: sum(float.fromhex(run[i].split()[-1]) for run in runs) / len(runs) for i in runs[0]}


def train_ranks(cfg: Config, hooks=(), **kwargs) -> list[int]:
    return ranks(lambda rank: train(parallel(cfg), hooks, record=f'losses{rank}.txt', **kwargs))


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
    """Work directory of a training in one process; the data are in ``data``."""
    folder = tmp_path_factory.mktemp('one')
    write_data(folder / 'data', upright=False)
    assert fork(train, comparable(folder / 'data', folder)) == 0
    return folder


def assert_same_training(two: Path, one: Path) -> None:
    """The mean of two processes' losses, and the weights, are one process's up to rounding."""
    expected = mean_losses(one, ['losses.txt'])
    found = mean_losses(two, ['losses0.txt', 'losses1.txt'])
    assert found.keys() == expected.keys() == set(range(9))
    assert expected[0] != expected[8]
    for i in expected:
        assert found[i] == pytest.approx(expected[i], rel=2e-5), i
    torch.testing.assert_close(final_weights(two), final_weights(one), rtol=1e-4, atol=1e-5)


def test_as_one_process(one_process, tmp_path):
    """The same losses and weights at the same images a step: normaliser, gradients, data and augmentations agree."""
    assert train_ranks(comparable(one_process / 'data', tmp_path)) == [0, 0]
    assert_same_training(tmp_path, one_process)


@pytest.mark.slow
def test_sharded(one_process, tmp_path):
    """FSDP: the same once more, in a training that was stopped and resumed; its checkpoint is that of any training."""
    changes = {
        'runner_type': 'FlexibleRunner',
        'strategy': dict(type='mmdet_ddetr.FSDPStrategy'),
        'default_hooks.signals.interval': 1,
    }
    cfg = comparable(one_process / 'data', tmp_path, changes)
    assert (
        train_ranks(cfg, [Do('before_train_iter', 4, lambda runner: os.kill(os.getpid(), signal.SIGTERM))])
        == [EXIT_CODE] * 2
    )
    assert max(losses(tmp_path, 'losses0.txt')) == 4

    def resume(rank):
        runner = train(parallel(cfg), record=f'losses{rank}.txt', resume=True)
        units = [name for name, m in runner.model.named_modules() if isinstance(m, FullyShardedDataParallel)]
        assert len(units) == 1 + 1 + 2  # the model, its encoder layer, its decoder layers

    assert ranks(resume) == [0, 0]
    assert_same_training(tmp_path, one_process)


def test_without_boxes(tmp_path):
    """Images without boxes on one process or on both: no hang, finite losses, and the weights stay the same on both."""
    write_data(tmp_path / 'data', counts=(0, 4, 0, 0, 2, 0), upright=False)
    cfg = comparable(tmp_path / 'data', tmp_path, {'train_dataloader.sampler.shuffle': False})

    def run(rank):
        runner = train(parallel(cfg), record=f'losses{rank}.txt')
        weights = torch.cat([p.detach().flatten() for p in runner.model.parameters()])
        first = weights.clone()
        torch.distributed.broadcast(first, 0)
        assert torch.isfinite(weights).all() and torch.equal(first, weights)

    assert ranks(run) == [0, 0]
    assert [losses(tmp_path, f'losses{rank}.txt')[1].split()[0] for rank in (0, 1)] == ['[2]', '[3]']


def test_normaliser():
    """Of the losses: boxes a process, and at least one, as in the official code."""
    like = torch.zeros(1)

    def run(rank):
        for counts, expected in (((3, 0), 1.5), ((1, 0), 1.0), ((0, 0), 1.0), ((5, 2), 3.5)):
            assert SetHead._average(counts[rank], True, like) == expected
        assert SetHead._average(3 * rank, False, like) == max(3 * rank, 1)

    assert ranks(run) == [0, 0]


def test_evaluated_once(tmp_path):
    """Five images on two processes, one of which gets three: each counts once, and the figures are one process's."""
    write_data(tmp_path / 'data', counts=(2, 1, 3, 1, 1))

    def run(cfg, rank=0):
        from mmdet.evaluation import CocoMetric

        from mmdet_ddetr.apis.runner import make_runner

        compute = CocoMetric.compute_metrics

        def recorded(self, results):
            predictions = [prediction for _, prediction in results]
            metrics = compute(self, results)
            torch.save((predictions, dict(metrics)), tmp_path / f'{cfg.launcher}_{rank}.pth')
            return metrics

        CocoMetric.compute_metrics = recorded
        torch.manual_seed(0)
        runner = make_runner(cfg)
        runner.model.init_weights() if cfg.launcher == 'none' else runner.model.module.init_weights()
        runner.val()

    cfg = make_config(tmp_path / 'data', tmp_path / 'work')
    cfg.launcher = 'none'
    assert fork(run, copy.deepcopy(cfg)) == 0
    assert ranks(lambda rank: run(parallel(cfg), rank)) == [0, 0]
    assert not (tmp_path / 'pytorch_1.pth').exists()
    one, metrics = torch.load(tmp_path / 'none_0.pth', weights_only=False)
    two, metrics_of_two = torch.load(tmp_path / 'pytorch_0.pth', weights_only=False)
    assert [image['img_id'] for image in two] == [image['img_id'] for image in one] == list(range(5))
    for a, b in zip(one, two):
        torch.testing.assert_close(torch.as_tensor(a['bboxes']), torch.as_tensor(b['bboxes']), rtol=1e-4, atol=1e-3)
    assert metrics_of_two == pytest.approx(metrics, abs=2e-3, nan_ok=True)


@pytest.mark.slow
def test_signal_to_one_process(tmp_path):
    """All processes leave together, and go on as if nothing had been."""
    write_data(tmp_path / 'data')
    changes = {'default_hooks.signals.interval': 2}
    assert train_ranks(make_config(tmp_path / 'data', tmp_path / 'whole', changes)) == [0, 0]
    cfg = make_config(tmp_path / 'data', tmp_path / 'parts', changes)

    def terminate(runner):
        if os.environ['RANK'] == '1':
            os.kill(os.getpid(), signal.SIGTERM)

    assert train_ranks(cfg, [Do('before_train_iter', 2, terminate)]) == [EXIT_CODE] * 2
    assert max(losses(tmp_path / 'parts', 'losses0.txt')) == 3  # asked after every second iteration
    assert train_ranks(cfg, resume=True) == [0, 0]
    for name in ('losses0.txt', 'losses1.txt'):
        assert losses(tmp_path / 'parts', name) == losses(tmp_path / 'whole', name)


# ---------------------------------------------------------------------- accumulation


@pytest.mark.parametrize('counts', [(2, 2, 2, 2), (3, 1, 1, 3)])
def test_accumulation(counts, tmp_path):
    """Two accumulated images equal a batch of two where both have as many boxes, and only there.

    Each batch is normalised by its own boxes, and the mean of two such means weighs the boxes of images with few more.
    """
    write_data(tmp_path / 'data', counts=counts, upright=False)
    shared = {'train_dataloader.sampler.shuffle': False, 'train_cfg.max_epochs': 1, 'param_scheduler': None}
    for name, changes in (
        ('batch', shared),
        ('accumulated', {**shared, 'train_dataloader.batch_size': 1, 'optim_wrapper.accumulative_counts': 2}),
    ):
        cfg = comparable(tmp_path / 'data', tmp_path / name, changes)
        del cfg.train_dataloader.dataset.pipeline[2]  # the flip: its seeds follow the iterations
        assert fork(train, cfg) == 0
    a, b = (torch.load(tmp_path / name / 'epoch_1.pth')['state_dict'] for name in ('batch', 'accumulated'))
    difference = max(float((a[key] - b[key]).abs().max()) for key in a if a[key].is_floating_point())
    assert (difference < 1e-6) == (counts[0] == counts[1]), difference


# ---------------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ('rule', 'processes', 'accumulated', 'factor'),
    [('linear', 1, 1, 1 / 16), ('linear', 8, 2, 1.0), ('sqrt', 1, 1, 1 / 4), ('sqrt', 8, 8, 2.0)],
)
def test_scale_lr(rule, processes, accumulated, factor):
    cfg = Config(
        dict(
            train_dataloader=dict(batch_size=2),
            optim_wrapper=dict(optimizer=dict(lr=2e-4), accumulative_counts=accumulated),
            auto_scale_lr=dict(enable=True, base_batch_size=32, rule=rule),
        )
    )
    said = scale_lr(cfg, processes)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4 * factor)
    assert f'{2 * processes * accumulated} images a step instead of 32, {rule} rule' in said
    assert not cfg.auto_scale_lr.enable  # or mmengine would scale it once more
    assert scale_lr(cfg, processes) is None


def test_scale_lr_asks_the_launcher(monkeypatch):
    monkeypatch.setenv('SLURM_NTASKS', '4')
    cfg = Config(
        dict(
            launcher='slurm',
            train_dataloader=dict(batch_size=2),
            optim_wrapper=dict(optimizer=dict(lr=1.0)),
            auto_scale_lr=dict(enable=True, base_batch_size=4),
        )
    )
    scale_lr(cfg)
    assert cfg.optim_wrapper.optimizer.lr == 2.0


def test_scale_lr_errors():
    cfg = Config(dict(auto_scale_lr=dict(enable=True, base_batch_size=4, rule='cube')))
    with pytest.raises(ValueError, match=r"rule must be one of \['linear', 'sqrt'\], got 'cube'"):
        scale_lr(cfg)
    with pytest.raises(ValueError, match='no auto_scale_lr.base_batch_size'):
        scale_lr(Config(dict(auto_scale_lr=dict(enable=True))))


# ----------------------------------------------------------------------------- Slurm


@pytest.fixture
def slurm(tmp_path):
    """Run tools/slurm_train.sh with an ``srun`` that does ``what``: (exit code, calls of srun and scontrol)."""

    def run(what: str, script: str = 'slurm_train.sh', *args: str) -> tuple[int, list[str]]:
        commands = tmp_path / 'bin'
        commands.mkdir()
        for name, action in (('srun', what), ('scontrol', '')):
            file = commands / name
            file.write_text(
                f'#!/usr/bin/env bash\necho {name} "$@" >> {tmp_path}/calls\nwork={tmp_path}/work\n{action}\n'
            )
            file.chmod(0o755)
        environment = dict(
            PATH=f'{commands}:/usr/bin:/bin', PYTHON='python', SLURM_JOB_ID='12', SLURM_SUBMIT_DIR=str(ROOT)
        )
        arguments = args or ('config.py', f'{tmp_path}/work', '--amp')
        done = subprocess.run(['bash', ROOT / 'tools' / script, *arguments], env=environment)
        return done.returncode, (tmp_path / 'calls').read_text().splitlines()

    return run


SAVED = 'sleep 0.05; echo $work/interrupted.pth > $work/last_checkpoint; exit '


@pytest.mark.parametrize(
    ('what', 'code', 'queued'),
    [
        ('exit 0', 0, False),
        ('exit 1', 1, False),  # a mistake: not again
        (f'{SAVED} 75', 75, True),  # the time limit is near
        (f'{SAVED} 137', 137, True),  # one task left later than the other
        (f'kill -TERM $PPID; {SAVED} 75', 75, False),  # scancel signals the shell, too
        ('echo $work/epoch_3.pth > $work/last_checkpoint; exit 1', 1, False),
    ],
)
def test_slurm_train(what, code, queued, slurm, tmp_path):
    """What is run, and that the job queues itself again where a signal has stopped it, and only there."""
    exit_code, calls = slurm(what)
    assert exit_code == code
    command = f'python -u {ROOT}/tools/train.py config.py --work-dir {tmp_path}/work --launcher slurm --resume --amp'
    assert calls == [f'srun --kill-on-bad-exit=1 {command}', *(['scontrol requeue 12'] if queued else [])]


def test_slurm_train_after_an_earlier_interruption(slurm, tmp_path):
    """A job that fails at its start does not queue itself again because of an older checkpoint."""
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/last_checkpoint').write_text('interrupted.pth')
    os.utime(tmp_path / 'work/last_checkpoint', (0, 0))
    assert slurm('exit 1')[1][1:] == []


def test_slurm_test(slurm):
    code, calls = slurm('exit 3', 'slurm_test.sh', 'config.py', 'epoch_1.pth', '--tta')
    assert code == 3
    command = f'python -u {ROOT}/tools/test.py config.py epoch_1.pth --launcher slurm --tta'
    assert calls == [f'srun --kill-on-bad-exit=1 {command}']
