"""Host memory of a training over its iterations, data loader workers included (Linux).

    OMP_WAIT_POLICY=passive python benchmarks/host_memory.py path/to/coco/folder

Deformable DETR with its own data pipeline (the paper's augmentation: images of up to 800 x 1333 px, crops), hooks,
checkpoints and evaluations. The model is as narrow as possible, because memory that grows is lost per image, object or
iteration, not per channel.

What is counted is the proportional set size (PSS) of the process and all its children: a page that n processes share
counts 1/n in each, so that the sum counts every page once.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from _measure import machine
from mmengine.hooks import Hook

import mmdet_ddetr
from mmdet_ddetr.apis.runner import make_runner
from mmdet_ddetr.datasets import find_coco_folder, read_coco
from mmdet_ddetr.testing import shrink

KINDS = ('Pss', 'Pss_Anon', 'Pss_File', 'Pss_Shmem')
WHO = ('main', 'workers')
MB = 1e6


def memory(process: psutil.Process) -> dict[str, float]:
    """MB of a process, by kind; all 0 if it has just ended."""
    try:
        lines = Path(f'/proc/{process.pid}/smaps_rollup').read_text().splitlines()[1:]
    except OSError:
        return dict.fromkeys(KINDS, 0.0)
    sizes = {key: int(size.split()[0]) * 1024 / MB for key, size in (line.split(':') for line in lines)}
    return {kind: sizes[kind] for kind in KINDS}


class Watch(Hook):
    """Writes the memory of the main process and of its children to a CSV file, whenever MemoryHook has trimmed."""

    priority = 'LOWEST'

    def __init__(self, path: Path, interval: int = 50):
        self.path = path
        self.interval = interval
        self.process = psutil.Process()
        path.write_text(','.join(['iteration', *(f'{who} {kind}' for who in WHO for kind in KINDS)]) + '\n')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.every_n_train_iters(runner, self.interval):
            main = memory(self.process)
            children = [memory(child) for child in self.process.children(recursive=True)]
            workers = [sum(child[kind] for child in children) for kind in KINDS]
            with self.path.open('a') as file:
                file.write(','.join(f'{value:.3f}' for value in (runner.iter + 1, *main.values(), *workers)) + '\n')


def narrow(model: dict, C: int = 16) -> dict:
    """The model of the config with a 1/16 of its channels, R18 for R50 and few layers."""
    shrink(model)
    model.backbone.update(base_channels=8, stem_channels=8)
    model.neck.in_channels = [channels // 8 for channels in model.neck.in_channels]
    model.neck.out_channels = C
    model.neck.norm_cfg.num_groups = 4
    model.positional_encoding.num_feats = C // 2
    model.bbox_head.embed_dims = C
    for stack in (model.encoder, model.decoder):
        stack.num_layers = 1
        for name, layer in stack.layer_cfg.items():
            if name.endswith('_cfg'):
                layer.embed_dims = C
        stack.layer_cfg.ffn_cfg.feedforward_channels = 2 * C
    return model


def make_config(folder: str, args):
    data = find_coco_folder(folder)
    cfg = mmdet_ddetr.get_config(args.config)
    narrow(cfg.model)
    classes = tuple(category['name'] for category in read_coco(data.train.ann_file)['categories'])
    cfg.model.bbox_head.num_classes = len(classes)
    for split, loader in ((data.train, cfg.train_dataloader), (data.val, cfg.val_dataloader)):
        loader.dataset.update(
            data_root='',
            ann_file=str(split.ann_file),
            data_prefix=dict(img=str(split.image_dir)),
            metainfo=dict(classes=classes),
        )
        loader.update(num_workers=args.workers, persistent_workers=args.workers > 0)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.val_evaluator.ann_file = str(data.val.ann_file)
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=args.iterations, val_interval=args.val_interval)
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=args.val_interval)
    cfg.log_processor.by_epoch = False
    cfg.default_hooks.logger.log_metric_by_epoch = False
    cfg.randomness = dict(seed=0)
    cfg.work_dir = str(args.out)
    return cfg


def slope(iterations: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """MB per 100 iterations by least squares, and the standard error of it."""
    x = iterations / 100
    x = x - x.mean()
    rate = (x * sizes).sum() / (x * x).sum()
    rest = sizes - sizes.mean() - rate * x
    return rate, float(np.sqrt((rest**2).sum() / (len(x) - 2) / (x * x).sum()))


def rows_of(path: Path) -> Iterator[dict[str, float]]:
    with open(path, newline='') as file:
        for row in csv.DictReader(file):
            yield {key: float(value) for key, value in row.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', help='folder in COCO format')
    parser.add_argument('--config', default='deformable-detr_r50_16xb2-50e_coco')
    parser.add_argument('--iterations', type=int, default=1500)
    parser.add_argument('--warm-up', type=int, default=300, help='iterations left out (default: %(default)s)')
    parser.add_argument('--val-interval', type=int, default=500, help='of evaluation and checkpoint')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks/host_memory'))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'host_memory.csv'
    runner = make_runner(make_config(args.data, args))
    runner.register_hook(Watch(path))
    runner.train()

    rows = list(rows_of(path))
    iterations = np.array([row['iteration'] for row in rows])
    late = iterations > args.warm_up
    print(f'\n{machine("cpu")}, {args.iterations} iterations, {args.workers} workers')
    print(f'{"MB (PSS)":>18} {"start":>8} {"warm":>8} {"end":>8}   per 100 iterations after {args.warm_up}')
    for who in WHO:
        for kind in KINDS:
            sizes = np.array([row[f'{who} {kind}'] for row in rows])
            first, warm, last = sizes[0], sizes[late][:2].mean(), sizes[-2:].mean()
            rate, error = slope(iterations[late], sizes[late])
            print(f'{who:>8} {kind:>9} {first:8.1f} {warm:8.1f} {last:8.1f}   {rate:+.2f} +- {error:.2f}')


if __name__ == '__main__':
    main()
