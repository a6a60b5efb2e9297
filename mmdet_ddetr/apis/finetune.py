"""From a folder in COCO format to a config that trains on it."""

import copy
import io
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmengine.config import Config
from mmengine.device import is_cuda_available
from mmengine.runner import Runner

from ..checkpoints import CheckpointError, load
from ..datasets import CocoDataset, CocoFolder, read_coco
from ..evaluation import CocoMetric
from ..hooks import FitCheckpointHook
from ..inference.memory import keep_freed_memory
from ..loops import TimedTrainLoop
from ..registry import DATASETS, LOOPS, METRICS, is_a, our_class
from .configs import ConfigError
from .pictures import palette
from .runner import make_runner

WARMUP_SHARE = 0.1  # of the iterations, at most
INTERVAL = 20  # iterations, at least, between the evaluations and checkpoints of a training counted in iterations
CHECKPOINTS = 20  # of a training by the clock, about, where its epochs are short


def configure(
    cfg: Config,
    folder: CocoFolder,
    classes: tuple[str, ...],
    *,
    epochs: int | None = None,
    iters: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
) -> Config:
    """A copy of ``cfg`` that trains on ``folder``.

    Args:
        cfg: a config of mmdet's structure, whose datasets are CocoDatasets.
        folder: where the data lie.
        classes: names in the order of the train split's annotation file.
        epochs, iters: length of the training, at most one of them. The learning rate schedule and the intervals of
            evaluation and checkpoints are stretched to fit; those of ``iters`` are 20 iterations at least, or all.
        batch_size: images a step.
        lr: learning rate. By default the config's, times the root of batch_size / the config's batch size (the rule for
            Adam).

    Raises:
        ConfigError: a split of the config joins several datasets.
    """
    cfg = copy.deepcopy(cfg)
    _leave_the_clock(cfg)
    metainfo = dict(classes=tuple(classes), palette=palette(len(classes)))
    for split, loader in (
        (folder.train, 'train_dataloader'),
        (folder.val, 'val_dataloader'),
        (folder.test, 'test_dataloader'),
    ):
        dataset = innermost_dataset(cfg[loader])
        if 'datasets' in dataset:
            raise ConfigError(f'{loader}: got a {dataset.type} of several datasets, expected a single CocoDataset')
        dataset.update(
            data_root='',
            ann_file=str(split.ann_file.resolve()),
            data_prefix=dict(img=str(split.image_dir.resolve())),
            metainfo=metainfo,
        )
        if our_class(dataset.type, DATASETS) is CocoDataset:
            dataset.type = 'mmdet_ddetr.CocoDataset'  # its errors name the file
        if dataset.get('filter_cfg'):
            dataset.filter_cfg.min_size = 0  # the check passes small images: none is left out without a word
    for split, evaluator in ((folder.val, 'val_evaluator'), (folder.test, 'test_evaluator')):
        for metric in cfg[evaluator] if isinstance(cfg[evaluator], list) else [cfg[evaluator]]:
            metric.update(ann_file=str(split.ann_file.resolve()), format_only=False)
            if our_class(metric.type, METRICS) is CocoMetric:
                metric.type = 'mmdet_ddetr.CocoMetric'  # of which report.html is made
            if is_a(metric.type, METRICS, MMDetCocoMetric):
                metric.classwise = True
    _set_num_classes(cfg.model, len(classes))
    optimizer = cfg.optim_wrapper.optimizer
    if batch_size is not None:
        if lr is None:
            lr = optimizer.lr * math.sqrt(batch_size / cfg.train_dataloader.batch_size)
        cfg.train_dataloader.batch_size = batch_size
    if lr is not None:
        optimizer.lr = lr
    if cfg.get('auto_scale_lr'):
        cfg.auto_scale_lr.enable = False  # the rate is this batch size's
    n_train = len(read_coco(folder.train.ann_file)['images'])
    if iters is not None:
        _limit_warmup(cfg, n_train)  # of the config's plan, which shrinks as a whole
        count_iterations(cfg, n_train)
        set_length(cfg, iters)
        for part, key in ((cfg.train_cfg, 'val_interval'), (cfg.default_hooks.checkpoint, 'interval')):
            part[key] = max(part.get(key, 1), min(INTERVAL, iters))
    elif epochs is not None:
        by_epoch = length_of(cfg)[1] == 'epochs'
        set_length(cfg, epochs if by_epoch else epochs * math.ceil(n_train / cfg.train_dataloader.batch_size))
    _limit_warmup(cfg, n_train)
    return cfg


def innermost_dataset(loader):
    """The dataset config inside RepeatDataset and its like."""
    dataset = loader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def length_of(cfg: Config) -> tuple[int, str]:
    """How long a config trains, and whether in 'epochs' or 'iters'."""
    if 'max_epochs' in cfg.train_cfg:
        return cfg.train_cfg.max_epochs, 'epochs'
    return cfg.train_cfg.max_iters, 'iters'


def set_length(cfg: Config, length: int) -> None:
    """Train for ``length`` epochs (iterations, where the config counts those) and stretch all that is planned to it.

    That is the learning rate schedule and the intervals of evaluation and checkpoints. Schedulers that count in the
    other unit, such as a warm-up in iterations beside epochs, stay as they are.
    """
    old, unit = length_of(cfg)
    _stretch(cfg, length / old)
    cfg.train_cfg[f'max_{unit}'] = length


def count_iterations(cfg: Config, n_train: int) -> None:
    """Make a config that counts epochs count iterations, with the same plan; no-op if it does already.

    Args:
        cfg: changed in place. Schedulers with a factor for every epoch, such as ExponentialLR, are not supported.
        n_train: images in an epoch.
    """
    length, unit = length_of(cfg)
    if unit == 'iters':
        return
    iterations = math.ceil(n_train / cfg.train_dataloader.batch_size)
    _stretch(cfg, iterations)
    for scheduler in _as_list(cfg.get('param_scheduler')):
        scheduler.by_epoch = False
        scheduler.pop('convert_to_iter_based', None)
    interval = cfg.train_cfg.get('val_interval', iterations)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=length * iterations, val_interval=interval)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')  # the loop pauses 2 s whenever a sampler ends
    cfg.default_hooks.checkpoint.by_epoch = False
    cfg.default_hooks.logger.log_metric_by_epoch = False
    cfg.log_processor.by_epoch = False


def train_by_the_clock(cfg: Config, seconds: float, at_most: bool = False) -> Config:
    """A copy that trains, evaluates and tests within ``seconds`` on whatever machine, by its own plan.

    Schedule and evaluations shrink or grow with the number of iterations that there is time for, see
    :class:`mmdet_ddetr.loops.Budget`.

    Args:
        cfg: of :func:`configure`.
        seconds: from the start of the process.
        at_most: train no longer than the config does.

    Raises:
        ValueError: there is no time.
    """
    if seconds <= 0:
        raise ValueError('no time is left to train, after start, test and pictures')
    n_train, n_test = (
        len(read_coco(Path(innermost_dataset(cfg[f'{split}_dataloader']).ann_file))['images'])
        for split in ('train', 'test')
    )
    cfg = copy.deepcopy(cfg)
    count_iterations(cfg, n_train)
    planned, _ = length_of(cfg)
    cfg.train_cfg = dict(
        type='mmdet_ddetr.TimedTrainLoop',
        seconds=seconds,
        max_iters=planned,
        val_interval=min(cfg.train_cfg.val_interval, planned),
        schedule=_as_list(cfg.get('param_scheduler')),
        test_images=n_test,
        from_start=True,
        at_most=at_most,
    )
    cfg.param_scheduler = None
    checkpoint = cfg.default_hooks.checkpoint
    checkpoint.interval = max(checkpoint.get('interval', 1), planned // CHECKPOINTS)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """mmengine's Runner, whose log goes to its file; the console gets errors only.

    On a CPU, memory that the process frees is kept for its next use from then on, where the C library is glibc: a step
    of a small model takes 7 % less time.
    """
    if not is_cuda_available():
        keep_freed_memory()
    with silence() as console:
        runner = make_runner(cfg)
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setStream(console)
            handler.setLevel(logging.ERROR)
    return runner


def unfit_weights(
    model: torch.nn.Module, checkpoint: str | Path, classes: Sequence[str], hook: FitCheckpointHook
) -> tuple[int, list[str], list[str]]:
    """What a training of ``classes`` that starts from a checkpoint takes from it.

    Args:
        model: initialised; not changed.
        checkpoint: what is given to ``load_from``.
        classes: of the data.
        hook: of the training, which knows which classes have other names in the checkpoint.

    Returns:
        How many tensors of the model are the checkpoint's; the names of those that are not, or in a part of their rows
        only, as a rule the class branches; and sentences, such as which classes have a row of their name.

    Raises:
        CheckpointError: it cannot be read, or none of it fits, and its layout is not known. The message names it.
    """
    content = load(checkpoint)  # its errors name the file
    try:
        fitted, report = hook.start_from(content, model, classes)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None
    own = model.state_dict()
    unfit = [k for k, v in own.items() if k in report.resized or k not in fitted or fitted[k].shape != v.shape]
    return len(own) - len(unfit), unfit, report.notes


@contextmanager
def silence():
    """Swallow what is printed to stdout (pycocotools says much); gives the real stdout."""
    console = sys.stdout
    with redirect_stdout(io.StringIO()):
        yield console


def _leave_the_clock(cfg: Config) -> None:
    """Of a training by the clock, whose config is the start of another one, only the plan stays."""
    loop = cfg.train_cfg
    if loop.get('type') and is_a(loop.type, LOOPS, TimedTrainLoop):
        cfg.param_scheduler = loop.schedule
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=loop.max_iters, val_interval=loop.val_interval)


def _stretch(cfg: Config, factor: float) -> None:
    """Multiply every point of the plan that is in the unit of the train loop; the length itself stays."""

    def times_factor(steps):
        return max(round(steps * factor), 1)

    by_epoch = length_of(cfg)[1] == 'epochs'
    parts = [(cfg.train_cfg, ['val_interval', 'val_begin']), (cfg.default_hooks.get('checkpoint') or {}, ['interval'])]
    for scheduler in _as_list(cfg.get('param_scheduler')):
        if scheduler.get('by_epoch', True) == by_epoch:
            parts.append((scheduler, ['begin', 'end', 'T_max', 'total_iters', 'total_steps', 'step_size']))
            if 'milestones' in scheduler:
                scheduler.milestones = [times_factor(milestone) for milestone in scheduler.milestones]
    for part, keys in parts:
        part.update({key: times_factor(part[key]) for key in keys if part.get(key)})


def _as_list(value) -> list:
    return value if isinstance(value, list | tuple) else [] if value is None else [value]


def _set_num_classes(model: dict, num_classes: int) -> None:
    """Set it in the heads: wherever it stands outside the backbone."""
    if 'num_classes' in model:
        model['num_classes'] = num_classes
    for key, value in model.items():
        if key != 'backbone':
            for part in _as_list(value):
                if isinstance(part, dict):
                    _set_num_classes(part, num_classes)


def _limit_warmup(cfg: Config, n_train: int) -> None:
    """Keep a warm-up that counts iterations beside epochs from filling a short training."""
    length, unit = length_of(cfg)
    if unit == 'epochs':
        iterations = length * math.ceil(n_train / cfg.train_dataloader.batch_size)
        for scheduler in _as_list(cfg.get('param_scheduler')):
            if not scheduler.get('by_epoch', True) and not scheduler.get('begin'):
                scheduler.end = min(scheduler.end, max(round(WARMUP_SHARE * iterations), 1))
