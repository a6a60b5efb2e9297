"""A training small enough for tests that start it, kill it and start it again."""

import copy
import functools
import gc
import json
import multiprocessing
import os
import socket
from datetime import timedelta
from pathlib import Path

import cv2
import mmdet.datasets
import mmdet.engine
import mmdet.evaluation
import mmdet.models
import mmdet.visualization  # noqa: F401  what every forked process would else import by itself
import mmengine.device.utils
import numpy as np
import torch
import torch._dynamo
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet_ddetr.apis.runner import make_runner
from mmdet_ddetr.apis.scale_lr import scale_lr

ROOT = Path(__file__).parents[1]
CLASSES = ('dark', 'light')


COUNTS = (2, 1, 3, 0, 1, 2)


def write_data(folder: Path, counts: tuple[int, ...] = COUNTS, upright: bool = True) -> None:
    """Noise with rectangles on it, in COCO format.

    Args:
        counts: boxes of each image.
        upright: every third image is higher than wide.
    """
    rng = np.random.default_rng(0)
    images, annotations = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for i, count in enumerate(counts):
        h, w = (64, 48) if upright and i % 3 == 1 else (48, 64)
        picture = rng.integers(80, 120, (h, w, 3), np.uint8)
        for _ in range(count):
            label = int(rng.integers(2))
            x, y = (int(v) for v in rng.integers(0, (w - 20, h - 20)))
            bw, bh = (int(v) for v in rng.integers(8, 20, 2))
            picture[y : y + bh, x : x + bw] = 255 * label
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=i, category_id=label, bbox=[x, y, bw, bh], area=bw * bh, iscrowd=0
                )
            )
        cv2.imwrite(str(folder / f'{i}.png'), picture)
        images.append(dict(id=i, file_name=f'{i}.png', width=w, height=h))
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES)]
    text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
    (folder / 'annotations.json').write_text(text)


def make_config(data: Path, work_dir: Path, changes: dict | None = None) -> Config:
    """Deformable DETR with random augmentation, dropout and trained batch norms, under this project's runtime.

    Args:
        data: folder of :func:`write_data`.
        changes: {'a.b': value}, merged in.
    """
    C = 16
    attention = dict(embed_dims=C, num_heads=2, dropout=0.1, batch_first=True)
    deformable = dict(attention, type='mmdet_ddetr.MSDeformAttn', num_points=2, num_levels=2)
    ffn = dict(embed_dims=C, feedforward_channels=32, ffn_drop=0.1)
    model = dict(
        type='mmdet_ddetr.DeformableDETR',
        num_queries=10,
        num_feature_levels=2,
        with_box_refine=True,
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[100.0] * 3, std=[50.0] * 3),
        backbone=dict(
            type='ResNet',
            depth=18,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(1, 2),
            base_channels=8,
            stem_channels=8,
        ),
        neck=dict(type='ChannelMapper', in_channels=[16, 32], out_channels=C, kernel_size=1, num_outs=2),
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=ffn)),
        decoder=dict(
            num_layers=2,
            layer_cfg=dict(
                self_attn_cfg=dict(attention, type='mmdet_ddetr.MultiheadAttention'),
                cross_attn_cfg=deformable,
                ffn_cfg=ffn,
            ),
        ),
        positional_encoding=dict(num_feats=C // 2, normalize=True, offset=-0.5),
        bbox_head=dict(type='mmdet_ddetr.SetHead', num_classes=len(CLASSES)),
        test_cfg=dict(max_per_img=10),
    )
    load = [dict(type='mmdet_ddetr.LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    augment = [
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomCrop', crop_size=(0.7, 0.7), crop_type='relative_range', allow_negative_crop=True),
    ]
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
    pack = dict(type='PackDetInputs', meta_keys=meta_keys)

    def loader(pipeline, shuffle):
        return dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            dataset=dict(
                type='CocoDataset',
                data_root=str(data),
                ann_file='annotations.json',
                data_prefix=dict(img=''),
                metainfo=dict(classes=CLASSES),
                filter_cfg=dict(filter_empty_gt=False),
                pipeline=pipeline,
            ),
        )

    cfg = runtime()
    cfg.update(
        model=model,
        train_dataloader=dict(
            loader([*load, *augment, resize, pack], True), batch_sampler=dict(type='AspectRatioBatchSampler')
        ),
        val_dataloader=loader([load[0], resize, load[1], pack], False),
        val_evaluator=dict(type='CocoMetric', ann_file=str(data / 'annotations.json'), metric='bbox'),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
            clip_grad=dict(max_norm=0.1),
            paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
            dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=0.1),
        ],
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=3),
        val_cfg=dict(type='ValLoop'),
        work_dir=str(work_dir),
        randomness=dict(seed=7),
        log_level='ERROR',
        env_cfg=dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='gloo')),
    )
    cfg.visualizer.name = str(work_dir)  # mmengine keeps visualizers by name: not that of another test
    cfg.default_hooks.update(pictures=None, curves=None)  # they take time
    cfg.merge_from_dict(copy.deepcopy(changes or {}))  # merging takes _delete_ out of them
    return cfg


def runtime() -> Config:
    """A copy of this project's runtime."""
    return copy.deepcopy(_runtime())


@functools.cache
def _runtime() -> Config:
    return Config.fromfile(ROOT / 'configs/_base_/detr_runtime.py')  # mmengine reads all of mmdet's metafiles for it


class Record(Hook):
    """Writes the loss of every iteration, exactly, to ``losses.txt`` of the work directory."""

    priority = 'VERY_HIGH'

    def __init__(self, name: str = 'losses.txt'):
        self.name = name  # one for each process

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        images = [sample.img_id for sample in data_batch['data_samples']]
        with open(Path(runner.work_dir, self.name), 'a') as file:
            file.write(f'{runner.iter} {images} {outputs["loss"].item().hex()}\n')


class Do(Hook):
    """Calls ``action(runner)`` at a hook point, in one iteration of the training (counted from 0)."""

    priority = 100

    def __init__(self, at: str, iteration: int, action):
        def hook(runner, **kwargs):
            if runner.iter == iteration:
                action(runner)

        setattr(self, at, hook)


def train(cfg: Config, hooks: list[Hook] = (), resume: bool = False, record: str = 'losses.txt') -> Runner:
    """Train in this process."""
    cfg.resume = resume
    scale_lr(cfg)
    runner = make_runner(cfg)
    runner.register_custom_hooks([Record(record), *hooks])
    runner.train()
    return runner


def fork(function, *args, **kwargs) -> int:
    """Call a function in a process of its own, which need not import everything anew; its exit code (-9: killed)."""
    (code,) = fork_all([lambda: function(*args, **kwargs)])
    return code


def fork_all(functions: list, timeout: float = 600) -> list[int]:
    """Call each function in a process of its own, all at once; their exit codes.

    The time is for a busy machine; a process that hangs is the exception.
    """
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=_start, args=(function,)) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, f'{len(hung)} of {len(processes)} processes did not end within {timeout} s'
    return [process.exitcode for process in processes]


def _start(function) -> None:
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False  # bit for bit is meant for CPUs, and CUDA does not survive a fork
    mmengine.device.utils.DEVICE = 'cpu'
    gc.freeze()  # as in conftest: what is here is no garbage
    function()


def ranks(function, world_size: int = 2) -> list[int]:
    """Call ``function(rank)`` in processes that are joined by gloo, with torchrun's environment; their exit codes."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]

    def process(rank):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=300))
        function(rank)

    return fork_all([lambda rank=rank: process(rank) for rank in range(world_size)])


def parallel(cfg: Config, images: int = 1) -> Config:
    """The config as one of the processes of :func:`ranks`."""
    Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
    os.chdir(cfg.work_dir)  # mmengine leaves a folder where it collects results
    cfg.launcher = 'pytorch'
    cfg.train_dataloader.batch_size = images
    return cfg


def losses(work_dir: Path, name: str = 'losses.txt') -> dict[int, str]:
    """{iteration: images and loss}; an iteration that was trained twice counts as it was the last time."""
    lines = Path(work_dir, name).read_text().splitlines()
    return {int(line.split()[0]): line.split(maxsplit=1)[1] for line in lines}
