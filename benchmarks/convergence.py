"""Convergence of DETR and Deformable DETR, equally wide, on the same drawn shapes and in about the same time.

    python benchmarks/convergence.py          # an hour on two cores, which the two trainings share

Each model first tries every learning rate for a few epochs. The rate with the lowest training loss there (AP is still
near 0) trains the model from scratch, for as many epochs as its config says. Trainings side by side disturb each other, so
the minutes of the report are epochs times the seconds of a step, measured afterwards with the models in turns. Finished
trainings are kept: an interrupted benchmark goes on with the next.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from _measure import machine, milliseconds, table, times

IMAGES = dict(train=800, val=150, test=1)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
FIGURES = {'AP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'small-object AP': 'coco/bbox_mAP_s'}
PLOTTED = ('AP', 'small-object AP')
LOSSES = ('loss_cls', 'loss_bbox', 'loss_iou')  # of the last decoder layer


@dataclass(frozen=True)
class Model:
    name: str
    config: str
    trial_epochs: int


MODELS = (
    Model('DETR', 'detr_lite0_shapes', 6),
    Model('Deformable DETR', 'deformable-detr_lite0_shapes', 3),
)


def config_of(model: Model, data: Path):
    """The model's config on the data."""
    from mmdet_ddetr import get_config

    cfg = get_config(model.config)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{data}/'
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].ann_file = str(data / 'annotations/val.json')
    cfg.auto_scale_lr.enable = False
    return cfg


def make_recorder(path: Path, run: dict):
    """A hook that writes ``run`` with its curve and the last epoch's training loss to ``path``."""
    from mmengine.hooks import Hook

    class Recorder(Hook):
        priority = 'VERY_LOW'

        def before_train_epoch(self, runner):
            self.losses = []

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.losses.append(sum(float(outputs[name]) for name in LOSSES))

        def after_val_epoch(self, runner, metrics=None):
            point = {name: float(metrics[key]) for name, key in FIGURES.items()}
            run['curve'].append(dict(epoch=runner.epoch, **point))

        def after_train_epoch(self, runner):
            run['loss'] = statistics.fmean(self.losses)

        def after_train(self, runner):
            run['finished'] = True
            path.write_text(json.dumps(run))

    return Recorder()


def train(model: Model, lr: float, epochs: int | None, data: Path, out: Path) -> dict:
    """A training for ``epochs``, None for all of the config's; or its result, if ``out`` has it already.

    Returns:
        ``lr``, ``epochs``, ``curve`` (figures by epoch), ``loss`` (mean of the last epoch, of the last decoder layer).
    """
    from mmengine.runner import Runner

    cfg = config_of(model, data)
    epochs = epochs or cfg.train_cfg.max_epochs
    path = out / f'{model.config}_{epochs}e_lr{lr:g}.json'
    if path.exists():
        return json.loads(path.read_text())
    cfg.optim_wrapper.optimizer.lr = lr
    cfg.train_cfg.max_epochs = epochs
    cfg.train_cfg.val_interval = min(cfg.train_cfg.val_interval, epochs)
    cfg.default_hooks = dict(checkpoint=None, logger=dict(type='LoggerHook', interval=50))
    cfg.work_dir = str(out / path.stem)
    cfg.randomness = dict(seed=0)
    runner = Runner.from_cfg(cfg)
    run = dict(model=model.name, lr=lr, epochs=epochs, curve=[])
    runner.register_hook(make_recorder(path, run))
    runner.train()
    return run


def study(model: Model, data: Path, out: Path, threads: int) -> dict:
    """Try the learning rates, train with the best."""
    warnings.filterwarnings('ignore')
    torch.set_num_threads(threads)
    trials = [train(model, lr, model.trial_epochs, data, out) for lr in LEARNING_RATES]
    best = min(trials, key=lambda run: run['loss'])
    return dict(trials=trials, training=train(model, best['lr'], None, data, out))


def step(model: Model, data: Path):
    """A training step on a batch of the data, without the loading of it."""
    from mmengine.runner import Runner

    cfg = config_of(model, data)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.default_hooks = dict(checkpoint=None)
    cfg.work_dir = str(data / 'timing')
    cfg.experiment_name = f'{model.config}_timing'
    cfg.randomness = dict(seed=0)
    runner = Runner.from_cfg(cfg)
    optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    batch = next(iter(runner.build_dataloader(cfg.train_dataloader)))
    runner.model.train()
    return lambda: runner.model.train_step(batch, optim_wrapper)


def epoch_of(curve: list[dict], name: str, value: float) -> float | None:
    """The first epoch at which the curve, linear between its points from 0 at epoch 0, reaches the value."""
    last = {'epoch': 0, name: 0.0}
    for point in curve:
        if point[name] >= value:
            share = (value - last[name]) / (point[name] - last[name])
            return last['epoch'] + share * (point['epoch'] - last['epoch'])
        last = point
    return None


def best(curve: list[dict], name: str) -> float:
    return max(point[name] for point in curve)


def report(results: dict) -> str:
    """Tables of the trials, of the trainings and of the epochs and minutes to equal AP."""
    studies, minutes = results['studies'], results['minutes per epoch']
    slow, fast = (model.name for model in MODELS)
    trials = [
        [name, f'{run["lr"]:g}', str(run['epochs']), f'{run["loss"]:.3f}', f'{run["curve"][-1]["AP"]:.3f}']
        for name, study in studies.items()
        for run in study['trials']
    ]
    trainings = []
    for name, study in studies.items():
        run, last = study['training'], study['training']['curve'][-1]
        figures = [f'{last[figure]:.3f}' for figure in FIGURES]
        seconds = milliseconds(results['seconds per step'][name])
        trainings.append(
            [name, f'{run["lr"]:g}', seconds, str(run['epochs']), f'{run["epochs"] * minutes[name]:.1f}', *figures]
        )
    curves = {name: study['training']['curve'] for name, study in studies.items()}
    crossings = []
    for figure in PLOTTED:
        highest = min(best(curve, figure) for curve in curves.values())
        for share in (0.25, 0.5, 0.75, 1.0):
            epochs = {name: epoch_of(curve, figure, share * highest) for name, curve in curves.items()}
            spent = {name: epochs[name] * minutes[name] for name in curves}
            crossings.append(
                [f'{figure} {share * highest:.3f}']
                + [f'{epochs[slow]:.1f}', f'{epochs[fast]:.1f}', f'{epochs[slow] / epochs[fast]:.1f}']
                + [f'{spent[slow]:.1f}', f'{spent[fast]:.1f}', f'{spent[slow] / spent[fast]:.1f}']
            )
    return '\n\n'.join(
        [
            results['machine'],
            table(['model', 'learning rate tried', 'epochs', 'training loss', 'AP'], trials),
            table(['model', 'learning rate', 'ms a step', 'epochs', 'minutes', *FIGURES], trainings),
            table(
                ['to reach', f'epochs, {slow}', fast, 'ratio', f'minutes, {slow}', fast, 'ratio'],
                crossings,
            ),
        ]
    )


def plot(results: dict, path: Path):
    """A row for each figure, against epochs and against minutes."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    colors = dict(zip((model.name for model in MODELS), ('tab:gray', 'tab:orange')))
    figure, panels = plt.subplots(len(PLOTTED), 2, figsize=(9, 6), sharey='row', sharex='col', layout='constrained')
    for row, quantity in zip(panels, PLOTTED):
        for name, study in results['studies'].items():
            run = study['training']
            epochs = [0] + [point['epoch'] for point in run['curve']]
            values = [0.0] + [point[quantity] for point in run['curve']]
            label = f'{name}, learning rate {run["lr"]:g}'
            row[0].plot(epochs, values, color=colors[name], label=label)
            row[1].plot([e * results['minutes per epoch'][name] for e in epochs], values, color=colors[name])
        row[0].set_ylabel(f'{quantity} (val)')
        for panel in row:
            panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    panels[-1, 0].set_xlabel('epochs')
    panels[-1, 1].set_xlabel('minutes of training steps')
    figure.suptitle(results['machine'], fontsize=8)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--jobs', type=int, default=2, help='models trained at once (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='of each process (default: %(default)s)')
    parser.add_argument('--seconds', type=float, default=20, help='of timing for each model (default: %(default)s)')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmarks/convergence'),
        help='for data, trainings, .md, .json and .png (default: %(default)s)',
    )
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(args.threads)
    data, out = args.out / 'shapes', args.out
    make_shapes = Path(__file__).parents[1] / 'tools/make_shapes.py'
    subprocess.run(
        [sys.executable, make_shapes, data, *(f'--{split}={count}' for split, count in IMAGES.items())], check=True
    )
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context('spawn')) as pool:
        futures = {model.name: pool.submit(study, model, data, out, args.threads) for model in MODELS}
        studies = {name: future.result() for name, future in futures.items()}

    seconds = times({model.name: step(model, data) for model in MODELS}, args.seconds)
    steps = IMAGES['train'] / config_of(MODELS[0], data).train_dataloader.batch_size
    minutes = {name: min(samples) * steps / 60 for name, samples in seconds.items()}
    results = {
        'machine': machine('cpu'),
        'seconds per step': seconds,
        'minutes per epoch': minutes,
        'studies': studies,
    }
    (out / 'convergence.json').write_text(json.dumps(results))
    text = report(results)
    (out / 'convergence.md').write_text(text + '\n')
    plot(results, out / 'convergence.png')
    print(text)
    print(f'written: {out}/convergence.md, .json, .png')


if __name__ == '__main__':
    main()
