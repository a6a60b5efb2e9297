"""Which checkpoint a training goes on from, with which settings, and that it has its folder for itself."""

import copy
import json
import os
import shutil
import socket
from pathlib import Path

import psutil
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR
from training_case import CLASSES, fork, losses, make_config, ranks, train

from mmdet_ddetr.checkpoints import CheckpointError
from mmdet_ddetr.hooks import WorkDirInUseError
from mmdet_ddetr.hooks.last_checkpoint import newest
from mmdet_ddetr.hooks.resumed_settings import config_differences, fast_forward
from mmdet_ddetr.hooks.work_dir_lock import WorkDirLock


@pytest.fixture(scope='module')
def two_epochs(data, tmp_path_factory):
    """A work directory with epoch_1.pth and epoch_2.pth."""
    folder = tmp_path_factory.mktemp('two_epochs')
    assert fork(train, short(data, folder)) == 0
    return folder


def short(data, work_dir, changes=None, epochs=2):
    """A training that is not evaluated."""
    cfg = make_config(data, work_dir, {'train_cfg.max_epochs': epochs, 'log_level': 'INFO', **(changes or {})})
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    return cfg


@pytest.fixture
def work_dir(two_epochs, tmp_path):
    shutil.copytree(two_epochs, tmp_path / 'work')
    return tmp_path / 'work'


def log_of(work_dir):
    return max(work_dir.glob('*/*.log'), key=os.path.getmtime).read_text()


# ---------------------------------------------------------------------- the checkpoint


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    """Bytes of another file in the midst."""
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)


def flipped_weight(path):
    """One bit of a tensor, which torch loads without a word."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=False)['meta']['iter'] == 6


DAMAGES = {
    'cut off': cut_off,
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('<html>not found</html>'),
    'flipped': flipped,
    'one bit': flipped_weight,
    'deleted': Path.unlink,
    'weights alone': lambda path: torch.save(torch.load(path, weights_only=False)['state_dict'], path),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_last_checkpoint(damage, work_dir):
    """The one before it is taken, and the file is named in one line."""
    DAMAGES[damage](work_dir / 'epoch_2.pth')
    notes = []
    assert newest(work_dir, notes) == str(work_dir / 'epoch_1.pth')
    assert len(notes) == 2 and f'{work_dir / "epoch_2.pth"}' in notes[0] and '\n' not in ''.join(notes)
    assert notes[1].startswith(f'GOING ON FROM {work_dir / "epoch_1.pth"} (iteration 3)')


def test_no_checkpoint_is_read_twice(work_dir, monkeypatch):
    """The tensors stay in the files, also where all are looked at for the newest that is whole."""
    load = torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, mmap, **kwargs: load(*args, mmap=mmap or 1 / 0, **kwargs))
    assert newest(work_dir, []) == str(work_dir / 'epoch_2.pth')
    shutil.copy(work_dir / 'epoch_2.pth', work_dir / 'epoch_3.pth')
    (work_dir / 'last_checkpoint').unlink()
    assert newest(work_dir, []) == str(work_dir / 'epoch_3.pth')


def test_a_checkpoint_of_another_format(work_dir):
    """Without check sums, it is read as a whole."""
    path = work_dir / 'epoch_2.pth'
    torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    assert newest(work_dir, notes := []) == str(path) and not notes
    cut_off(path)
    assert newest(work_dir, []) == str(work_dir / 'epoch_1.pth')


@pytest.mark.parametrize('content', [b'', b'\0\xff\x80garbage', b'/', b'x' * 5000, None])
def test_garbage_in_last_checkpoint(content, work_dir):
    """Or no such file: the newest checkpoint counts, not a new beginning over what is there."""
    (work_dir / 'last_checkpoint').unlink()
    if content is not None:
        (work_dir / 'last_checkpoint').write_bytes(content)
    notes = []
    assert newest(work_dir, notes) == str(work_dir / 'epoch_2.pth')
    assert 'GOING ON FROM' in notes[-1]


def test_nothing_to_resume(work_dir):
    for path in work_dir.glob('epoch_*'):
        cut_off(path)
    with pytest.raises(CheckpointError, match=r'no checkpoint that can be read \(tried epoch_2.pth, epoch_1.pth\)'):
        newest(work_dir, [])
    shutil.rmtree(work_dir)
    work_dir.mkdir()
    assert newest(work_dir, []) is None


def test_copied_work_dir(two_epochs, work_dir, data):
    """It goes on from its own files, and leaves the original's alone."""
    assert (work_dir / 'last_checkpoint').read_text() == str(two_epochs / 'epoch_2.pth')
    before = {path.name for path in two_epochs.iterdir()}
    assert newest(work_dir, notes := []) == str(work_dir / 'epoch_2.pth') and not notes
    cfg = short(data, work_dir, {'default_hooks.checkpoint.max_keep_ckpts': 1}, epochs=3)
    assert fork(train, cfg, resume=True) == 0
    assert max(losses(work_dir)) == 8
    assert f'Resuming from {work_dir / "epoch_2.pth"}' in log_of(work_dir)
    assert {path.name for path in two_epochs.iterdir()} == before
    info = torch.load(work_dir / 'epoch_3.pth', weights_only=False)['message_hub']['runtime_info']
    assert info['last_ckpt'] == str(work_dir / 'epoch_3.pth')


def test_another_folder_for_checkpoints(two_epochs, tmp_path):
    """``last_checkpoint`` may name a file elsewhere."""
    (tmp_path / 'last_checkpoint').write_text(str(two_epochs / 'epoch_1.pth'))
    assert newest(tmp_path, notes := []) == str(two_epochs / 'epoch_1.pth') and not notes
    (tmp_path / 'last_checkpoint').write_text('s3://bucket/epoch_1.pth')
    assert newest(tmp_path, []) == 's3://bucket/epoch_1.pth'


@pytest.mark.parametrize('processes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_goes_on_behind_a_damaged_checkpoint(processes, data, work_dir):
    cut_off(work_dir / 'epoch_2.pth')
    (work_dir / 'losses.txt').unlink()
    cfg = short(data, work_dir)
    if processes == 1:
        assert fork(train, cfg, resume=True) == 0
    else:
        cfg.launcher = 'pytorch'
        cfg.train_dataloader.batch_size = 1
        assert ranks(lambda rank: train(copy.deepcopy(cfg), resume=True)) == [0, 0]
    assert list(losses(work_dir)) == [3, 4, 5]
    assert 'PASSED OVER' in log_of(work_dir)


# ------------------------------------------------------------------------ the settings


def resumed(data, work_dir, changes):
    """Log of one more epoch, and learning rates and weight decays at its end."""
    assert fork(train, short(data, work_dir, changes, epochs=3), resume=True) == 0
    groups = torch.load(work_dir / 'epoch_3.pth', weights_only=False)['optimizer']['param_groups']
    return log_of(work_dir), [sorted({group[key] for group in groups}) for key in ('lr', 'weight_decay')]


def refused(cfg, error):
    """The training does not begin."""

    def run():
        with pytest.raises(CheckpointError, match=error):
            train(cfg, resume=True)

    assert fork(run) == 0


LATER = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
    dict(type='MultiStepLR', by_epoch=True, milestones=[9], gamma=0.1),
]
CHANGED = {'param_scheduler': LATER, 'optim_wrapper.optimizer.lr': 2e-3, 'optim_wrapper.optimizer.weight_decay': 1e-2}


def test_stored_settings_are_kept(data, work_dir):
    """As mmengine does, but with a word about each."""
    log, settings = resumed(data, work_dir, CHANGED)
    assert settings == [pytest.approx([1e-4, 1e-3]), [1e-4]]
    (line,) = [line for line in log.splitlines() if 'KEPT FROM THE CHECKPOINT' in line]
    for text in (
        'learning rate 0.001 (config: 0.002)',
        'learning rate 0.0001 (config: 0.0002)',
        'weight decay 0.0001 (config: 0.01)',
        'milestones of scheduler 2 (MultiStepLR) [2] (config: [9])',
        'end of scheduler 2 (MultiStepLR) 2 (config: 3)',  # by mmengine: the epochs of the training
        'default_hooks.resume.schedule=config',
    ):
        assert text in line, text


def test_settings_of_the_config(data, work_dir):
    """The schedule is where it would be, had it been the config's from the start."""
    log, settings = resumed(data, work_dir, {**CHANGED, 'default_hooks.resume.schedule': 'config'})
    assert settings == [pytest.approx([2e-4, 2e-3]), [1e-2]]
    assert 'TAKEN FROM THE CONFIG' in log and 'learning rate 0.002 (checkpoint: 0.001)' in log


def test_unchanged_settings_need_no_word(data, work_dir):
    (work_dir / 'last_checkpoint').write_text('epoch_1.pth')
    before = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    assert fork(train, short(data, work_dir, {'default_hooks.resume.schedule': 'config'}), resume=True) == 0
    log, after = log_of(work_dir), torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    assert 'Resuming from' in log and 'KEPT FROM' not in log and 'TAKEN FROM' not in log
    assert after['param_schedulers'] == before['param_schedulers']
    assert after['optimizer']['param_groups'] == before['optimizer']['param_groups']


def test_another_kind_of_schedule(data, work_dir):
    """Its state fits no other: a choice is asked for, and can be made."""
    cosine = {'param_scheduler': [dict(type='CosineAnnealingLR', by_epoch=True, T_max=4, eta_min=0.0)]}
    refused(short(data, work_dir, cosine), 'epoch_2.pth: .* 2 schedulers .*, the config 1, of another kind. Choose')
    _, settings = resumed(data, work_dir, {**cosine, 'default_hooks.resume.schedule': 'config'})
    assert settings[0] == pytest.approx([0.5e-4, 0.5e-3])  # of the third epoch: (1 + cos(2 pi / 4)) / 2


@pytest.mark.parametrize(
    ('changes', 'error'),
    [
        (
            {'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=1e-3)},
            'epoch_2.pth: .*of another type: it has amsgrad, betas',
        ),
        (
            {'optim_wrapper.paramwise_cfg': dict(_delete_=True, norm_decay_mult=0.0, bypass_duplicate=True)},
            'epoch_2.pth: .* groups',
        ),
    ],
)
def test_another_optimizer(changes, error, data, work_dir):
    if 'groups' in error:
        changes = {**changes, 'model.backbone.frozen_stages': 1}
    refused(short(data, work_dir, changes), error)


def test_classes_in_another_order(data, work_dir):
    swapped = dict(type='mmdet_ddetr.CocoDataset', metainfo=dict(classes=CLASSES[::-1]))
    changes = {f'train_dataloader.dataset.{name}': value for name, value in swapped.items()}
    refused(short(data, work_dir, changes), 'epoch_2.pth: the training to resume has the classes .dark., .light.')


def test_weights_alone_are_no_training(data, work_dir):
    path = work_dir / 'weights.pth'
    torch.save(dict(state_dict=torch.load(work_dir / 'epoch_2.pth', weights_only=False)['state_dict']), path)
    cfg = short(data, work_dir)
    cfg.load_from = str(path)
    refused(cfg, 'weights.pth has no message_hub and no meta.epoch .*set load_from instead of resume')


def test_schedule_is_checked():
    from mmdet_ddetr.hooks import ResumeHook

    with pytest.raises(ValueError, match="schedule must be one of 'stored', 'config', got 'new'"):
        ResumeHook(schedule='new')


@pytest.mark.parametrize(('epochs', 'rest'), [(0, 0), (0, 3), (1, 0), (3, 2), (5, 4)])
def test_fast_forward(epochs, rest):
    """Equal to the steps of a training, one by one."""

    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
        return optimizer, [
            LinearLR(optimizer, start_factor=0.1, by_epoch=False, begin=0, end=7),
            CosineAnnealingLR(optimizer, T_max=20, by_epoch=False, begin=5, end=14, eta_min=0.01),
            MultiStepLR(optimizer, milestones=[2, 4], gamma=0.5),
        ]

    expected, stepped = make()
    for i in range(epochs * 5 + rest):
        for scheduler in stepped[:2]:
            scheduler.step()
        if (i + 1) % 5 == 0:
            stepped[2].step()
    optimizer, schedulers = make()
    fast_forward(schedulers, epochs, epochs * 5 + rest)
    assert optimizer.param_groups[0]['lr'] == expected.param_groups[0]['lr']
    assert [s._global_step for s in schedulers] == [s._global_step for s in stepped]
    assert [s.last_step for s in schedulers] == [s.last_step for s in stepped]


def test_differences_of_the_config():
    """What is in no state: the config's counts, and is told."""
    stored = Config(
        dict(train_cfg=dict(max_epochs=2, val_interval=1), optim_wrapper=dict(clip_grad=dict(max_norm=0.1)))
    )
    checkpoint = dict(meta=dict(cfg=stored.pretty_text))
    new = dict(train_cfg=dict(max_epochs=3, val_interval=1), optim_wrapper=dict(clip_grad=None, accumulative_counts=2))
    assert config_differences(Config(new), checkpoint) == [
        ('train_cfg.max_epochs', 2, 3),
        ('optim_wrapper.clip_grad', dict(max_norm=0.1), None),
        ('optim_wrapper.accumulative_counts', None, 2),
    ]
    assert config_differences(stored, checkpoint) == []
    assert config_differences(stored, dict(meta=dict(cfg='import os'))) == []


# ---------------------------------------------------------------------------- the lock


def not_needed(seconds):
    raise AssertionError('waits for a sign of life')


def lock(folder, sleep=not_needed, **changes):
    made = WorkDirLock(folder, beat=0.05, patience=4, sleep=sleep)
    made.owner.update(changes)
    return made


def test_second_training_is_refused(data, work_dir):
    """By name of the first, and before it removes anything of it; afterwards the folder is free."""
    unfinished = work_dir / 'epoch_3.pth.part'
    unfinished.touch()
    first = lock(work_dir)
    assert first.acquire() == ''
    cfg = short(data, work_dir)

    def second():
        with pytest.raises(WorkDirInUseError, match=rf'work is in use by .*process {first.owner["pid"]} on'):
            train(cfg)

    assert fork(second) == 0
    assert unfinished.exists()
    first.release()
    assert not first.path.exists()
    assert fork(train, cfg) == 0
    assert not unfinished.exists() and not first.path.exists()


def test_all_processes_refuse(data, work_dir):
    first = lock(work_dir)
    first.acquire()
    cfg = short(data, work_dir, {'launcher': 'pytorch', 'train_dataloader.batch_size': 1})

    def second(rank):
        with pytest.raises(WorkDirInUseError):
            train(cfg)

    assert ranks(second) == [0, 0]
    first.release()


def leave(folder, **changes):
    """A lock whose training is gone: of a process that was killed."""
    assert fork(lambda: lock(folder, **changes).acquire()) == 0
    return json.loads((folder / 'training.lock').read_text())


def test_lock_of_a_killed_training(tmp_path):
    old = leave(tmp_path)  # nobody waits on the same machine
    assert f'was left by a training that is gone (process {old["pid"]}' in lock(tmp_path).acquire()


@pytest.mark.parametrize('stale', [False, True])
def test_lock_taken_between_look_and_write(stale, tmp_path, monkeypatch):
    """B reads, A acquires, B writes: B is refused, and the folder stays A's."""
    if stale:
        leave(tmp_path)
    a, b = lock(tmp_path), lock(tmp_path)
    seen = b._read()
    a.acquire()
    monkeypatch.setattr(b, '_read', lambda: seen)
    with pytest.raises(WorkDirInUseError):
        b.acquire()
    assert json.loads(a.path.read_text()) == a.owner
    assert list(tmp_path.iterdir()) == [a.path]


def test_lock_of_a_number_that_another_process_has_now(tmp_path):
    leave(tmp_path)
    path = tmp_path / 'training.lock'
    parent = psutil.Process(os.getppid())
    path.write_text(json.dumps({**json.loads(path.read_text()), 'pid': parent.pid}))
    assert 'was left' in lock(tmp_path).acquire()


def test_lock_of_a_copied_folder(tmp_path):
    (tmp_path / 'original').mkdir()
    lock(tmp_path / 'original').acquire()
    shutil.copytree(tmp_path / 'original', tmp_path / 'copy')
    assert fork(take, tmp_path / 'copy') == 0


def take(folder):
    assert 'was left' in lock(folder).acquire()


@pytest.mark.parametrize('alive', [False, True])
def test_lock_of_another_machine(alive, tmp_path):
    """Process numbers mean nothing; the file is touched as long as the training lives."""
    leave(tmp_path, host='node7')
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if alive and len(waits) == 3:
            os.utime(tmp_path / 'training.lock', (0, 0))

    mine = lock(tmp_path, sleep)
    if alive:
        with pytest.raises(WorkDirInUseError, match='on node7'):
            mine.acquire()
    else:
        assert 'was left' in mine.acquire()
    assert waits == [0.05] * (3 if alive else 4)


@pytest.mark.parametrize('content', ['', 'garbage', '[]', '{}', '{"pid": "x"}'])
def test_garbage_in_the_lock(content, tmp_path):
    (tmp_path / 'training.lock').write_text(content)
    mine = lock(tmp_path)
    mine.acquire()
    assert json.loads((tmp_path / 'training.lock').read_text())['host'] == socket.gethostname()
    assert fork(mine.release) == 0  # not by a child
    assert (tmp_path / 'training.lock').exists()
    mine.release()
    assert not (tmp_path / 'training.lock').exists()
