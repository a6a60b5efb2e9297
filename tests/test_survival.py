"""What happens to a training that is killed, interrupted, out of disk, fed broken images or driven to nan."""

import errno
import functools
import logging
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn
from training_case import Do, fork, losses, make_config, train, write_data

from mmdet_ddetr import files
from mmdet_ddetr.datasets import DataError
from mmdet_ddetr.hooks.non_finite import explain_backward, explain_forward
from mmdet_ddetr.hooks.signals import EXIT_CODE
from mmdet_ddetr.visualization import SafeLocalVisBackend

ITERATION_BASED = {
    'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=9, val_interval=9),
    'param_scheduler': [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6)],
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 4,
}
ENDLESS = {**ITERATION_BASED, 'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True)}
LOOPS = dict(epochs={}, iterations=ITERATION_BASED, endless=ENDLESS)


def merged(*parts: dict) -> dict:
    return {key: value for part in parts for key, value in part.items()}


@pytest.fixture(scope='module')
def uninterrupted(data, tmp_path_factory):
    """Losses of a kind of loop, trained in one go."""

    @functools.cache
    def run(name):
        work_dir = tmp_path_factory.mktemp(name)
        assert fork(train, make_config(data, work_dir, LOOPS[name])) == 0
        assert list(losses(work_dir)) == list(range(9))
        return losses(work_dir)

    return run


def kill(runner):
    os.kill(os.getpid(), signal.SIGKILL)


# --------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ('loop', 'at', 'iteration'),
    [
        pytest.param('epochs', 'before_train_iter', 5, marks=pytest.mark.slow),
        ('epochs', 'before_save_checkpoint', 6),
        pytest.param('iterations', 'before_train_iter', 5, marks=pytest.mark.slow),
        pytest.param('iterations', 'before_save_checkpoint', 7, marks=pytest.mark.slow),
        pytest.param('endless', 'before_train_iter', 5, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(loop, at, iteration, data, tmp_path, uninterrupted):
    """kill -9 within an epoch or while a checkpoint is made: the losses are exactly those of the training in one go."""
    cfg = make_config(data, tmp_path, LOOPS[loop])
    assert fork(train, cfg, [Do(at, iteration, kill)]) == -signal.SIGKILL
    (tmp_path / 'losses.txt').unlink()
    assert fork(train, cfg, resume=True) == 0
    resumed = losses(tmp_path)
    assert 0 < min(resumed) < iteration and max(resumed) == 8
    assert resumed == {i: uninterrupted(loop)[i] for i in resumed}


@pytest.mark.parametrize(
    'loop', [*(pytest.param(loop, marks=pytest.mark.slow) for loop in ('epochs', 'iterations')), 'endless']
)
def test_terminated_within_an_epoch(loop, data, tmp_path, uninterrupted):
    """SIGTERM: a checkpoint after the iteration, exit code 75, and the next iteration is the first after --resume.

    Once with worker processes, which get the signal as well, and resumed with another number of them.
    """
    cfg = make_config(data, tmp_path, merged(LOOPS[loop], {'train_dataloader.num_workers': 1}))

    def terminate_group(runner):
        os.killpg(os.getpgid(0), signal.SIGTERM)

    def interrupted():
        os.setpgid(0, 0)
        train(cfg, [Do('before_train_iter', 4, terminate_group)])

    assert fork(interrupted) == EXIT_CODE == 75
    assert list(losses(tmp_path)) == list(range(5))
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'interrupted.pth')
    cfg.train_dataloader.num_workers = 0
    assert fork(train, cfg, resume=True) == 0
    assert losses(tmp_path) == uninterrupted(loop)


def test_order_of_the_data_without_a_seed(data, tmp_path):
    """mmengine draws a seed and saves it, but builds the sampler before it reads it back."""
    cfg = make_config(data, tmp_path, {'randomness': dict(_delete_=True, seed=None)})
    assert fork(train, cfg, [Do('before_train_iter', 4, kill)]) == -signal.SIGKILL
    before = losses(tmp_path)
    assert fork(train, cfg, resume=True) == 0
    after = losses(tmp_path)
    assert before[3] == after[3]


@pytest.mark.parametrize('batch', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_interrupted_evaluation_is_done(batch, data, tmp_path):
    """The last evaluation counts: without it nobody knows how good the training was."""
    cfg = make_config(data, tmp_path)

    class KillInEvaluation(Do):
        def __init__(self):
            self.after_val_iter = lambda runner, batch_idx, **kwargs: batch_idx == batch and kill(runner)

    assert fork(train, cfg, [KillInEvaluation()]) == -signal.SIGKILL
    assert not (tmp_path / 'evaluation').exists()
    assert fork(train, cfg, resume=True) == 0
    assert (tmp_path / 'evaluation/iter_9.csv').is_file()
    assert (tmp_path / 'last_evaluation').read_text() == '9'
    assert list(losses(tmp_path)) == list(range(9))
    (tmp_path / 'evaluation/iter_9.csv').unlink()
    assert fork(train, cfg, resume=True) == 0
    assert not (tmp_path / 'evaluation/iter_9.csv').exists()  # not again


def test_second_interrupt_is_immediate(data, tmp_path):
    """The first Ctrl-C waits for the end of the iteration, the second does not."""
    cfg = make_config(data, tmp_path)

    def interrupt_twice(runner):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    assert fork(train, cfg, [Do('before_train_iter', 1, interrupt_twice)]) == EXIT_CODE
    assert list(losses(tmp_path)) == [0, 1]


def test_interrupt_waits_for_the_optimizers_step(data, tmp_path):
    """Accumulated gradients are in no checkpoint."""
    cfg = make_config(data, tmp_path, {'optim_wrapper.accumulative_counts': 3, 'optim_wrapper.optimizer.lr': 1e-4})
    term = Do('before_train_iter', 3, lambda runner: os.kill(os.getpid(), signal.SIGTERM))
    assert fork(train, cfg, [term]) == EXIT_CODE
    assert max(losses(tmp_path)) == 5


# ----------------------------------------------------------------------- checkpoints


def test_write_atomically(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    files.write_atomically(path, b'old')
    assert path.read_bytes() == b'old'

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        files.write_atomically(path, b'new')
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('moment', ['write', 'fsync', 'replace'])
def test_killed_while_writing(moment, tmp_path, monkeypatch):
    """At every step of the writing the file has its old content or its new one."""
    path = tmp_path / 'file'
    files.write_atomically(path, b'old')

    def killed():
        if moment == 'write':
            monkeypatch.setattr(files.os, 'fsync', kill)
        elif moment == 'fsync':
            monkeypatch.setattr(files.os, 'replace', lambda *args: kill(None))
        else:
            replace = os.replace
            monkeypatch.setattr(files.os, 'replace', lambda *args: (replace(*args), kill(None)))
        files.write_atomically(path, b'new')

    assert fork(killed) == -signal.SIGKILL
    assert path.read_bytes() == (b'new' if moment == 'replace' else b'old')
    files.remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def failing(monkeypatch, fails):
    """Let the disk be full whenever ``fails(path)``."""
    write = files.write_atomically

    def full(path, data):
        if fails(Path(path)):
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        write(path, data)

    monkeypatch.setattr(files, 'write_atomically', full)


def test_full_disk(data, tmp_path, monkeypatch):
    """Training goes on, the log says so, the older checkpoint stays, and the next one is written."""
    cfg = make_config(data, tmp_path, {'default_hooks.checkpoint.max_keep_ckpts': 1})
    seen = []

    def look(runner):
        seen.append((sorted(path.name for path in tmp_path.glob('*.pth')), (tmp_path / 'last_checkpoint').read_text()))

    failing(monkeypatch, lambda path: path.name == 'epoch_2.pth')

    def run():
        train(cfg, [Do('before_train_iter', 6, look)])
        assert seen == [(['epoch_1.pth'], str(tmp_path / 'epoch_1.pth'))]

    assert fork(run) == 0
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'epoch_2.pth COULD NOT BE WRITTEN' in log and 'No space left' in log and 'epoch_1.pth' in log
    assert {'epoch_3.pth'} == {path.name for path in tmp_path.glob('epoch_*')}
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')
    assert list(losses(tmp_path)) == list(range(9))


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_full_disk_for_whatever_is_written(data, tmp_path):
    """The kernel's own ENOSPC, for every file written within the first epoch; the second goes through."""
    changes = {
        'train_cfg.max_epochs': 2,
        'train_cfg.val_interval': 1,
        'default_hooks.logger.interval': 1,
        'default_hooks.curves': dict(_delete_=True, type='mmdet_ddetr.LearningCurvesHook'),
    }
    cfg = make_config(data, tmp_path, changes)
    names = ['epoch_1.pth', 'evaluation/iter_3.csv', 'last_evaluation', 'curves.png']

    def fill(runner):
        (tmp_path / 'evaluation').mkdir()
        for name in names:
            (tmp_path / f'{name}{files.UNFINISHED}').symlink_to('/dev/full')
        scalars = next(tmp_path.glob('*/vis_data')) / 'scalars.json'
        scalars.rename(scalars.with_name('before'))
        scalars.symlink_to('/dev/full')

    assert fork(train, cfg, [Do('before_train_iter', 1, fill)]) == 0
    log = next(tmp_path.glob('*/*.log')).read_text()
    for what in [*(str(tmp_path / name) for name in names), 'scalars and pictures']:
        assert re.search(f'{what} COULD NOT BE WRITTEN: .*No space left', log), what
    assert list(losses(tmp_path)) == list(range(6))
    for name in ('epoch_2.pth', 'evaluation/iter_6.csv', 'last_evaluation', 'curves.png'):
        assert (tmp_path / name).is_file()
    assert not (tmp_path / 'evaluation/iter_3.csv').exists() and not list(tmp_path.glob(f'**/*{files.UNFINISHED}'))


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_full_disk_for_a_picture(tmp_path, monkeypatch):
    """Of a training's samples; OpenCV's imwrite would only say False."""
    told = []
    monkeypatch.setattr(MMLogger, 'get_current_instance', lambda: SimpleNamespace(error=told.append, log=print))
    backend = SafeLocalVisBackend(str(tmp_path))
    (tmp_path / 'vis_image').mkdir()
    (tmp_path / f'vis_image/a_1.png{files.UNFINISHED}').symlink_to('/dev/full')
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for name in 'ab':
        backend.add_image(name, picture, step=1)
    assert len(told) == 1 and re.search('pictures COULD NOT BE WRITTEN: .*No space left.*a_1.png', told[0])
    assert [path.name for path in (tmp_path / 'vis_image').iterdir()] == ['b_1.png']
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'vis_image/b_1.png'))[..., ::-1], picture)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_full_disk_for_the_log(data, tmp_path, capfd):
    """The lines are on the console, without a traceback for each that the file refuses; other mistakes get theirs."""
    cfg = make_config(data, tmp_path, {'log_level': 'INFO', 'train_cfg.max_epochs': 1})

    def fill(runner):
        (handler,) = (h for h in runner.logger.handlers if isinstance(h, logging.FileHandler))
        handler.setStream(os.fdopen(os.open('/dev/full', os.O_WRONLY), 'w'))

    def log(runner):
        runner.logger.info('on the %s', 'console')
        runner.logger.info('%d', 'no number')

    assert fork(train, cfg, [Do('before_train_iter', 0, fill), Do('before_train_iter', 1, log)]) == 0
    out, error = capfd.readouterr()
    assert 'on the console' in out
    assert 'No space left' not in error and error.count('--- Logging error ---') == 2  # in file and console


def test_full_disk_at_the_end_is_an_error(data, tmp_path, monkeypatch):
    """Nobody finds out otherwise that the trained weights are gone."""
    cfg = make_config(data, tmp_path)
    failing(monkeypatch, lambda path: path.name == 'epoch_3.pth')
    assert fork(train, cfg) == 1
    assert list(losses(tmp_path)) == list(range(9))


def test_full_disk_stops_where_it_should(data, tmp_path, monkeypatch):
    cfg = make_config(data, tmp_path, {'default_hooks.checkpoint.on_failure': 'stop'})
    failing(monkeypatch, lambda path: path.name == 'epoch_1.pth')
    assert fork(train, cfg) == 1
    assert list(losses(tmp_path)) == [0, 1, 2]


def test_best_checkpoint_outlives_a_full_disk(data, tmp_path, monkeypatch):
    """The previous best goes when its successor is there."""
    changes = {'train_cfg.val_interval': 1, 'default_hooks.checkpoint.save_best': 'score'}
    cfg = make_config(data, tmp_path, changes)

    class Score(Do):
        priority = 'VERY_HIGH'

        def __init__(self):
            self.after_val_epoch = lambda runner, metrics: metrics.update(score=runner.epoch / 10)

    failing(monkeypatch, lambda path: path.name == 'best_score_epoch_2.pth')
    look = Do('before_train_iter', 6, lambda runner: (tmp_path / 'seen').write_text(names()))

    def names():
        return ' '.join(path.name for path in tmp_path.glob('best_*'))

    assert fork(train, cfg, [Score(), look]) == 0
    assert (tmp_path / 'seen').read_text() == 'best_score_epoch_1.pth'
    assert names() == 'best_score_epoch_3.pth'
    info = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)['message_hub']['runtime_info']
    assert info['best_ckpt'] == str(tmp_path / 'best_score_epoch_3.pth') and info['best_score'] == 0.3


def test_on_failure_is_checked():
    from mmdet_ddetr.hooks import SafeCheckpointHook

    with pytest.raises(ValueError, match="on_failure must be 'continue' or 'stop', got 'ignore'"):
        SafeCheckpointHook(on_failure='ignore')


# ------------------------------------------------------------------------ broken data


@pytest.mark.parametrize('allowed', [False, True])
@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_image(allowed, workers, tmp_path):
    """Training stops, naming the file; with ignore_empty it says so and goes on."""
    write_data(tmp_path / 'data')
    (tmp_path / 'data/2.png').write_bytes(b'')
    changes = {'train_dataloader.num_workers': workers, 'train_cfg.max_epochs': 1}
    cfg = make_config(tmp_path / 'data', tmp_path, changes)
    cfg.train_cfg.val_interval = 2
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.default_hooks.checkpoint.save_best = None
    cfg.train_dataloader.dataset.pipeline[0].ignore_empty = allowed
    complaint = '2.png (image id 2): the file is empty'

    def run():
        if allowed:
            train(cfg)
        else:
            with pytest.raises(DataError, match=re.escape(complaint)):
                train(cfg)

    assert fork(run) == 0
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert (f'{complaint}; another image takes its place' in log) == allowed
    assert (tmp_path / 'epoch_1.pth').exists() == allowed


# ------------------------------------------------------------------------- not finite


def poison(name: str):
    """Set one weight of a module to nan."""

    def action(runner):
        with torch.no_grad():
            runner.model.get_parameter(name).view(-1)[3] = float('nan')

    return action


class Overflow(nn.Module):
    def forward(self, x):
        return x / 0 if self.training else x


def replace_ffn(runner):
    runner.model.encoder.layers[0].ffn.layers.add_module('overflow', Overflow())


def explode_gradient(runner):
    """A loss that is finite and whose gradient is not: the root of zero."""
    head = runner.model.bbox_head
    original = head.loss_by_feat

    def loss_by_feat(logits, *args):
        losses = original(logits, *args)
        losses['loss_root'] = ((logits - logits) ** 2).sum().sqrt()
        return losses

    head.loss_by_feat = loss_by_feat


COST = 'matching cost is not finite'
FAULTS = [
    ('weight', poison('neck.convs.0.conv.weight'), COST, 'the weight neck.convs.0.conv.weight: 1 nan'),
    ('module', replace_ffn, COST, 'the output of encoder.layers.0.ffn.layers.overflow (Overflow): '),
    ('gradient', explode_gradient, 'the gradient is not finite', 'the gradient of the output of bbox_head'),
]


@pytest.mark.parametrize(('action', 'error', 'first'), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_not_finite(action, error, first, data, tmp_path):
    """Stops before the step, and names cause, images and dump; the dump is enough to repeat it."""
    cfg = make_config(data, tmp_path)

    def run():
        from mmdet_ddetr.hooks import NonFiniteError

        with pytest.raises(NonFiniteError) as info:
            train(cfg, [Do('before_train_iter', 4, action)])
        (tmp_path / 'message').write_text(str(info.value))

    assert fork(run) == 0
    message = (tmp_path / 'message').read_text()
    for text in [f'iteration 4: {error}', f'first:  {first}', str(tmp_path / 'non_finite_iter_4.pth')]:
        assert text in message, message
    dump = torch.load(tmp_path / 'non_finite_iter_4.pth', weights_only=False)
    assert len(dump['image_ids']) == 2 and all(f'{i} ({data}/{i}.png)' in message for i in dump['image_ids'])
    assert list(losses(tmp_path)) == list(range(4))
    assert dump['iteration'] == 4 and dump['first'] in message


def build(data, tmp_path):
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    return MODELS.build(make_config(data, tmp_path).model).train()


def batch(**changes):
    from mmdet_ddetr.testing import make_batch

    inputs, samples = make_batch([(48, 64), (64, 48)], [2, 1], 2)
    for sample in samples:
        sample.set_metainfo(dict(img_path=f'{sample.img_id}.png'))
    return dict(inputs=[image.clone() for image in inputs], data_samples=samples)


def test_explain_forward(data, tmp_path):
    """Pixels, ground truth, a module's own computation between its children; nothing where nothing is wrong."""
    model = build(data, tmp_path)
    assert explain_forward(model, batch()) is None
    bad = batch()
    bad['inputs'][1][0, 0, 0] = float('inf')
    assert explain_forward(model, bad) == 'the pixels of image 1 (1.png): 0 nan and 1 inf in [3, 64, 64]'
    bad = batch()
    bad['data_samples'][0].gt_instances.bboxes[1, 2] = float('nan')
    assert explain_forward(model, bad) == 'the ground-truth boxes of image 0 (0.png): 1 nan and 0 inf in [2, 4]'
    encoder = model.forward_encoder
    model.forward_encoder = lambda feat, **kwargs: encoder(feat=feat * float('nan'), **kwargs)
    assert explain_forward(model, batch()).startswith('the input of encoder (DeformableEncoder): ')


def test_explain_backward(data, tmp_path):
    model = build(data, tmp_path)
    assert explain_backward(model, batch()) is None
    model.neck.register_forward_hook(lambda module, args, output: tuple(x + (x - x).abs().sqrt() for x in output))
    assert explain_backward(model, batch()).startswith('the gradient of the output of ')


def test_other_errors_stay_themselves(data, tmp_path):
    """A ValueError with finite values everywhere is not explained away."""
    cfg = make_config(data, tmp_path)

    def wrong(runner):
        def loss(*args, **kwargs):
            raise ValueError('something else')

        runner.model.bbox_head.loss = loss

    def run():
        with pytest.raises(ValueError, match='something else'):
            train(cfg, [Do('before_train_iter', 1, wrong)])

    assert fork(run) == 0
    assert not list(tmp_path.glob('non_finite*'))


def test_runtime_config_is_the_one_tested():
    """The faults above are survived under the configs' own runtime."""
    hooks = Config.fromfile(Path(__file__).parents[1] / 'configs/_base_/detr_runtime.py').default_hooks
    ours = {hook.type.split('.')[1] for hook in hooks.values() if hook.type.startswith('mmdet_ddetr.')}
    assert {'SafeCheckpointHook', 'ResumeHook', 'SignalHook', 'NonFiniteHook', 'MemoryHook'} <= ours


def test_a_stored_best_checkpoint_is_taken_for_its_name_alone(tmp_path):
    """What a checkpoint calls its best is removed for a better one: never what is no checkpoint of the folder."""
    from mmengine.logging import MessageHub

    from mmdet_ddetr.hooks import SafeCheckpointHook

    hook, hub = SafeCheckpointHook(), MessageHub('stored')
    best = dict(best_ckpt='..', best_ckpt_a='/', best_ckpt_b='', best_ckpt_c='/etc/passwd', best_ckpt_d=3)
    hub.update_info_dict(best | dict(last_ckpt='/else/epoch_2.pth', best_ckpt_e='/else/best_AP_epoch_1.pth'))
    hook._relocate(SimpleNamespace(work_dir=str(tmp_path), message_hub=hub))
    assert dict(hub.runtime_info) == dict(
        last_ckpt=str(tmp_path / 'epoch_2.pth'), best_ckpt_e=str(tmp_path / 'best_AP_epoch_1.pth')
    )
