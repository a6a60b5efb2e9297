"""A user's mistakes end in a sentence; the console shows what is read, the log file everything."""

import logging
import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import Registry, build_from_cfg
from mmengine.runner import Runner
from training_case import make_config, write_data

from mmdet_ddetr.apis import mistakes
from mmdet_ddetr.apis.configs import ConfigError, merge_options, parse_options
from mmdet_ddetr.apis.console import DEBUG, _is_news
from mmdet_ddetr.apis.runner import make_runner
from mmdet_ddetr.apis.scale_lr import scale_lr
from mmdet_ddetr.apis.unread import value_at
from mmdet_ddetr.checkpoints import CheckpointError
from mmdet_ddetr.datasets import DataError
from mmdet_ddetr.hooks.errors import StartError

TOOLS = Path(__file__).parents[1] / 'tools'
NAME = 'deformable-detr_lite0_shapes'
NO_WEIGHTS = 'model.backbone.init_cfg=None'


@pytest.fixture
def tool(tmp_path, monkeypatch, capfd):
    """``tool('train.py', *args)`` -> the last message; in a new folder, with no traceback or config before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DEBUG, raising=False)
    cv2.imwrite('picture.jpg', np.zeros((8, 8, 3), np.uint8))
    Path('epoch_3.pth').touch()

    def run(name, *args):
        monkeypatch.setattr(sys, 'argv', [name, *args])
        MMLogger._instance_dict.clear()  # as in a new process; a logger of the same second has a console that is closed
        with pytest.raises(SystemExit) as info:
            runpy.run_path(str(TOOLS / name), run_name='__main__')
        out, err = capfd.readouterr()
        assert 'Traceback' not in out + err and len(out.splitlines()) < 8, out
        return str(info.value) if isinstance(info.value.code, str) else err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (f'train.py {NAME} --cfg-options {NO_WEIGHTS}', "CocoDataset: no file 'data/shapes/annotations/train.json'"),
        (f'train.py {NAME} --cfg-options', 'argument --cfg-options: expected at least one argument'),
        (f'train.py {NAME} --cfg-options model.num_queries', "got 'model.num_queries', expected key=value"),
        (f'train.py {NAME} --cfg-options {NO_WEIGHTS} model.nun_queries=9', r"takes no argument 'nun_q.* mean num_que"),
        (
            f'train.py {NAME} --cfg-options {NO_WEIGHTS} model.type=DeformableDTR',
            r'unknown type .* mean Deformable?DETR',
        ),
        (
            f'train.py {NAME} --cfg-options {NO_WEIGHTS} model.num_queries=[1]',
            'cannot be built from the config: TypeEr',
        ),
        (
            f'train.py {NAME} --cfg-options {NO_WEIGHTS} train_cfg.max_epoch=1',
            r"takes no argument 'max_epoch'.* max_epo",
        ),
        (f'train.py {NAME} --cfg-options runner_type=Runer', "runner_type: no runner 'Runer' .* did you mean Runner"),
        (f'train.py {NAME} --cfg-options {NO_WEIGHTS} custom_hooks=X', 'hook should be an instance of Hook or dict'),
        (
            f'train.py {NAME} --cfg-options train_dataloader.dataset.pipeline.9.type=X',
            'is a list of ., so the next .*9',
        ),
        (f'train.py {NAME} --cfg-options model.num_queries.a=3', "model.num_queries is 30, which has no 'a'"),
        (
            f'train.py {NAME} --cfg-options load_from=epoch_4.pth',
            "no checkpoint 'epoch_4.pth'; .* there is epoch_3.pth",
        ),
        (f'train.py {NAME} --work-dir picture.jpg', "'.*picture.jpg.*': "),
        (f'train.py {NAME} --launcher pytorch', 'no launcher has started this process'),
        (f'train.py {NAME} --resume no/epoch_4.pth', "no checkpoint 'no/epoch_4.pth', nor that folder"),
        (f'test.py {NAME} none.pth', "no checkpoint 'none.pth'"),
        ('test.py picture.jpg epoch_3.pth', 'picture.jpg cannot be read as a config: '),
        ('complexity.py none', "no config 'none'"),
        (f'complexity.py {NAME} --cfg-options model.nun_queries=9 {NO_WEIGHTS}', "takes no argument 'nun_queries'"),
        ('convert_checkpoint.py picture.jpg a.pth', 'picture.jpg cannot be read .*: it is a picture'),
        (f'explain.py {NAME} picture.jpg picture.jpg --device=cpu', 'picture.jpg cannot be read .*: it is a picture'),
        (f'export.py {NAME} none.pth a.onnx', "no checkpoint 'none.pth'"),
        (f'export.py {NAME} picture.jpg a.onnx', 'picture.jpg cannot be read .*: it is a picture'),
        ('finetune.py --data nowhere', 'nowhere'),
        (
            'predict.py --weights epoch_3.pth --source . --config picture.jpg',
            '--config: picture.jpg cannot be read as a config: .*Only py',
        ),
        ('predict.py --weights epoch_3.pth --source . --config nope', "no config 'nope'"),
        (f'train.py {NAME} --image_size 9', 'unrecognized .*: --image_size 9; .* did you mean --image-size?'),
        ('finetune.py --data . --imagesize=9', 'there is no --imagesize, did you mean --image-size?'),
        ('predict.py --wieghts a.pth --source .', 'are required: --weights; .* --wieghts, did you mean --weights?'),
        ('finetune.py --data . --chek', 'there is no --chek, did you mean --check?'),
        ('finetune.py --data . --wrong', r'unrecognized arguments: --wrong$'),
        (f'train.py {NAME} --nothing-near 9', r'unrecognized arguments: --nothing-near 9$'),
        (f'train.py {NAME} --work-dir a b', r'unrecognized arguments: b$'),
        ('predict.py --weights a.pth b.pth c.pth --source .', '--weights takes 1 value, got 3: a.pth b.pth c.pth$'),
        ('predict.py --weights a.pth a.pth --source a.pth', '--weights takes 1 value, got 2: a.pth a.pth$'),
        ('predict.py --weight a.pth b.pth --source a.pth', 'there is no --weight, did you mean --weights'),
        ('predict.py --source . --weights=a.pth b.pth', '--weights takes 1 value, got 2: a.pth b.pth$'),
        ('predict.py --weights a.pth --source . --no-pictures b', '--no-pictures takes no values, got 1: b$'),
        ('finetune.py --data . --work-dir picture.jpg', "--work-dir: '.*picture.jpg' is a file, expected a folder"),
        (f'export.py {NAME} none.pth a.onnx --threshold 7', '--threshold: must be a number from 0 to 1, got 7$'),
        (f'export.py {NAME} none.pth a.onnx --threshold nan', '--threshold: must be a number from 0 to 1, got nan$'),
        (f'export.py {NAME} none.pth a.onnx --batch 0', 'argument --batch: 0 is not positive$'),
        (f'export.py {NAME} picture.jpg /proc/a.onnx', "out: nothing can be written to '/proc': No such file"),
        (f'export.py {NAME} none.pth a.pth', 'out: a.pth ends in none of .onnx, .xml, .pt2$'),
        (f'export.py {NAME} none.pth a.onnx --format aoti', 'out: a.onnx must end in .pt2 for --format aoti$'),
        (f'export.py {NAME} none.pth a.pth --format onnx', 'out: a.pth must end in .onnx for --format onnx$'),
        ('finetune.py --data . --load-from none.pth', "no checkpoint 'none.pth'"),
    ],
)
def test_one_sentence(tool, arguments, message):
    text = tool(*arguments.split())
    assert re.search(message, text), text
    assert text.startswith(f'{arguments.split()[0]}: ')
    if log := re.search(r'\(traceback: (.+\.log)\)', text):
        assert 'Traceback (most recent call last)' in Path(log[1]).read_text()


def test_what_is_exported_is_not_overwritten(tool):
    """Under other names and endings neither."""
    Path('weights.bin').touch()
    Path('mine.py').touch()
    Path('same.onnx').symlink_to('weights.bin')
    Path('same.pt2').hardlink_to('mine.py')
    Path('dir.onnx').mkdir()
    for arguments, message in {
        f'{NAME} same.onnx same.onnx': 'out: same.onnx is the checkpoint, which would be overwritten',
        f'{NAME} weights.bin same.onnx': 'out: same.onnx is the checkpoint, which would be overwritten',
        f'{NAME} weights.bin weights.xml': 'out: weights.bin is the checkpoint, which would be overwritten',
        'mine.py weights.bin same.pt2': 'out: same.pt2 is the config, which would be overwritten',
        f'{NAME} weights.bin dir.onnx': 'out: dir.onnx is a folder, expected a file to write',
    }.items():
        assert message in tool('export.py', *arguments.split())


def test_a_broken_config_names_the_line(tool):
    Path('mine.py').write_text('a = 1\nb = dict(c=1\n')
    assert re.search(r"mine.py, line 2: '\(' was never closed: b = dict\(c=1", tool('train.py', 'mine.py'))
    Path('mine.py').write_text("_base_ = 'none.py'\n")
    assert re.search('mine.py cannot be read as a config: .*none.py', tool('train.py', 'mine.py'))


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        ('convert_checkpoint.py none.pth a.pth', CheckpointError),
        ('train.py none', ConfigError),
        (f'train.py {NAME} --cfg-options model.num_queries.a=3', ConfigError),
        (f'train.py {NAME} --check --cfg-options {NO_WEIGHTS} load_from=none.pth', CheckpointError),
    ],
)
def test_debug_shows_the_traceback(tool, monkeypatch, arguments, error):
    monkeypatch.setenv(DEBUG, '1')
    monkeypatch.setattr(sys, 'argv', arguments.split())
    with pytest.raises(error):
        runpy.run_path(str(TOOLS / arguments.split()[0]), run_name='__main__')


# --- what is told ----------------------------------------------------------------------------------------------------


def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error


def test_other_errors_are_left_alone():
    """A bug in a training is no mistake in a config, whatever it says."""
    for error in (TypeError("f() got an unexpected keyword argument 'x'"), KeyError('X is not in the a::b registry')):
        assert mistakes.explain(error) is None
        with pytest.raises(type(error)):
            mistakes.end(error)


def test_errors_of_workers_are_unwrapped():
    text = 'Caught DataError in DataLoader worker process 0.\nTraceback ...\nmmdet_ddetr...DataError: a.jpg is empty'
    assert mistakes.explain(DataError(text)) == 'a.jpg is empty'


def test_missing_argument():
    registry = Registry('thing', scope='here')

    @registry.register_module()
    class Thing:
        def __init__(self, size):
            pass

    assert mistakes.explain(raised(build_from_cfg, dict(type='Thing'), registry)) == "Thing needs 'size' in the config"


def test_key_of_a_data_loader():
    """The loader is built by a loop, which is built from the config as well: the loop takes the blame for nothing."""
    registry, runner = Registry('loop', scope='here'), object.__new__(Runner)
    runner._train_dataloader = dict(dataset=[1], sampler=None, batchsize=3)

    @registry.register_module()
    class Loop:
        def __init__(self, runner):
            runner.build_dataloader(runner._train_dataloader)

    error = raised(build_from_cfg, dict(type='Loop', runner=runner), registry)
    text = mistakes.explain(error)
    assert text.startswith("train_dataloader takes no argument 'batchsize'; did you mean batch_size"), text


def test_a_log_that_is_gone_is_not_named(tmp_path, monkeypatch):
    logger = MMLogger('gone', log_file=str(tmp_path / 'run.log'))
    monkeypatch.setattr(MMLogger, '_instance_dict', {'gone': logger})
    assert mistakes.keep_traceback(ValueError()) == f'\n(traceback: {tmp_path / "run.log"})'
    (tmp_path / 'run.log').unlink()
    assert mistakes.keep_traceback(ValueError()) == f'\n(traceback: set {DEBUG}=1)'


@pytest.mark.parametrize(
    'option',
    ['optim_wrapper.optimizer.lr=abc', 'train_dataloader.batch_size=a', 'auto_scale_lr.base_batch_size=0'],
)
def test_scaling_the_rate_names_the_key(option):
    cfg = Config(
        dict(
            auto_scale_lr=dict(enable=True, base_batch_size=32),
            train_dataloader=dict(batch_size=2),
            optim_wrapper=dict(optimizer=dict(lr=0.1)),
        )
    )
    key, value = option.split('=')
    cfg.merge_from_dict({key: DictAction._parse_iterable(value)})
    with pytest.raises(StartError, match=f'^{key} must be a number above 0, got .?{value}'):
        scale_lr(cfg)


def test_a_word_is_no_number():
    cfg = Config(dict(optim_wrapper=dict(clip_grad=dict(norm_type=2)), model=dict(num_queries=100)))
    for option, number in (('optim_wrapper.clip_grad.norm_type', 2), ('model.num_queries', 100)):
        with pytest.raises(ConfigError, match=f"^--cfg-options {option}: got 'a', expected a number, as {number} is$"):
            merge_options(cfg, [f'{option}=a'])
    merge_options(cfg, ['optim_wrapper.clip_grad.norm_type=inf'])


def test_out_of_memory():
    assert 'train_dataloader.batch_size=1' in mistakes.explain(torch.OutOfMemoryError('CUDA out of memory. Tried'))


# --- options ---------------------------------------------------------------------------------------------------------


def test_values_of_options():
    pairs = ['a=1', 'b.c=[1,x]', "d=[dict(type='E', m=0.1)]", 'e={"f": (1, 2)}', 'g=1,2', 'h=a=b', 'i=None']
    assert parse_options(pairs) == {
        'a': 1,
        'b.c': [1, 'x'],
        'd': [dict(type='E', m=0.1)],
        'e': dict(f=(1, 2)),
        'g': [1, 2],
        'h': 'a=b',
        'i': None,
    }


@pytest.mark.parametrize(
    'pair', ['a', '=1', 'a=[dict(type=EMAHook,m=1)]', 'a=[f(1,2)]', 'a=[1,(2]', "a={'b': open('c')}"]
)
def test_options_that_mean_nothing(pair):
    with pytest.raises(ConfigError, match='^--cfg-options'):
        parse_options([pair])


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('wrok_dir=a', "nothing reads 'wrok_dir'; did you mean work_dir?"),
        ('lr=1', "nothing reads 'lr'; did you mean optim_wrapper.optimizer.lr?"),
        ('batch_size=1', "nothing reads 'batch_size'; did you mean train_dataloader.batch_size?"),
        (
            'max_epochs=1',
            'the config file uses this name for itself, and its value stands at train_cfg.max_epochs: set',
        ),
        ('train_pipeline.0.prob=1', 'stands at train_dataloader.dataset.pipeline.0.prob: set that'),
        ('scale=8,8', 'stands at train_dataloader.dataset.pipeline.1.scale: set that; .* is set by --image-size'),
        ('img_size=8', "nothing reads 'img_size'; the size of the images is set by --image-size"),
        ('auto_scale_lr.enabel=1', "nothing reads 'enabel' in auto_scale_lr; did you mean auto_scale_lr.enable?"),
        ('optim_wrapper.clip_grad.maxnorm=1', 'did you mean optim_wrapper.clip_grad.max_norm?'),
        ('model.test_cfg.max_per_imgs=1', 'did you mean model.test_cfg.max_per_img?'),
        ('env_cfg.x=1', 'it has cudnn_benchmark, dist_cfg, mp_cfg, resource_limit'),
    ],
)
def test_options_that_nothing_reads(option, message):
    with pytest.raises(ConfigError, match=rf'^--cfg-options {option.split("=")[0]}: .*{message}'):
        merge_options(Config(OPTIONS), [option])


@pytest.mark.parametrize(
    'option',
    [
        'load_from=a',  # no config has these, mmengine reads them
        'strategy.type=A',
        'model.test_cfg.score_thr=1',  # new, and like none that is there
        'optim_wrapper.optimizer.fused=1',  # checked by the type
        'train_dataloader.dataset.metainfo.class=1',  # any key
        'optim_wrapper.paramwise_cfg.custom_keys.neck.lr_mult=1',
        'train_cfg.max_epochs=2',
    ],
)
def test_options_that_are_read(option):
    cfg = Config(OPTIONS)
    key, value = option.split('=')
    cfg.merge_from_dict({key: DictAction._parse_iterable(value)})
    assert str(value_at(cfg, key)) == value


RESIZE = dict(type='Resize', scale=(4, 4))
FLIP = dict(type='Flip', prob=0)
OPTIONS = dict(
    max_epochs=3,
    scale=(4, 4),
    train_pipeline=[FLIP, RESIZE],
    work_dir='a',
    auto_scale_lr=dict(enable=False),
    model=dict(type='D', test_cfg=dict(max_per_img=3)),
    optim_wrapper=dict(type='O', optimizer=dict(type='A', lr=0.1), clip_grad=dict(max_norm=1)),
    train_cfg=dict(type='L', max_epochs=3),
    train_dataloader=dict(batch_size=3, dataset=dict(type='C', metainfo=dict(classes=('a',)), pipeline=[FLIP, RESIZE])),
)


# --- the console ------------------------------------------------------------------------------------------------------


def test_details_stay_in_the_log_file():
    def is_news(text):
        return _is_news(logging.LogRecord('mmengine', logging.WARNING, '', 0, text, None, None))

    for text in (
        'Config:\nmodel = dict()',
        '\n------\nSystem environment:\n    sys.platform: linux',
        'backbone.stem.conv.weight is skipped since its requires_grad=False',
        'paramwise_options -- backbone.conv.weight:lr=0.1',
        'Failed to search registry with scope "mmdet" in the "function" registry tree.',
    ):
        assert not is_news(text)
    for text in (
        'Config file is old',
        'Failed to search registry with scope "mmdett" in the "function"',
        'Epoch(train)',
    ):
        assert is_news(text)


def test_console_of_a_good_training(tmp_path, capsys):
    """No detail that mmengine logs in every run, while the log file has them."""
    write_data(tmp_path / 'data')
    cfg = make_config(tmp_path / 'data', tmp_path / 'work', {'train_cfg.max_epochs': 1, 'log_level': 'INFO'})
    runner = make_runner(cfg)
    runner.train()
    shown, log = ''.join(capsys.readouterr()), Path(runner.logger.log_file).read_text()
    assert 'details are in' in shown and 'Epoch(train)' in log
    for detail in ('System environment:', 'Hooks will be executed', 'Config:'):
        assert detail in log and detail not in shown
    assert 'Failed to search registry' not in shown and 'Loads checkpoint by' not in shown + log
