"""How fast detectors learn: AP against epochs and against minutes, each trained for the same time on the same data.

    python benchmarks/convergence.py          # DETR and Deformable DETR on drawn shapes, an hour on two busy cores
    python benchmarks/convergence.py --data DIR --budget MINUTES NAME=CONFIG NAME=CONFIG,key=value ...

DIR is a folder in COCO format, as tools/finetune.py takes it; CONFIG the path of a config or the name of one of this
package, each key=value a setting in it; the first model is what the others are compared with. A training's length is
the budget divided by the shortest time of a step, measured first, with the models in turns, so that what runs beside
the trainings disturbs none of them; schedule and warm-up of the config are stretched to it. Minutes are those of
training steps, without the loading of images and evaluations.

Each model first tries its config's learning rate times every one of --rates in a short training, in all of which the
time is the same. The rate with the lowest loss in the last epoch trains it from scratch for the budget; a single rate
needs no trial. Finished trainings are kept in --out: an interrupted benchmark goes on with the next.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from _measure import machine, milliseconds, peak_memory, table, times
from _training import FIGURES, Model, draw_shapes, figures_of, on_folder, without_outputs
from mmengine.device import get_device

SHAPES = dict(size=128, train=1600, val=150, test=150)  # px and images
MODELS = ('DETR=detr_lite0_shapes', 'Deformable DETR=deformable-detr_lite0_shapes')
PLOTTED = ('AP', 'small-object AP')
EVALUATIONS = 16  # of a training; a trial has one


def config_of(model: Model, data: str, epochs: int | None = None):
    """The model's config on the data, its plan stretched to ``epochs``."""
    from mmdet_ddetr.apis import get_config
    from mmdet_ddetr.apis.finetune import length_of
    from mmdet_ddetr.datasets import find_coco_folder

    cfg = get_config(model.config)
    model.change(cfg)
    if length_of(cfg)[1] != 'epochs':
        raise ValueError(f'{model.config} counts iterations, expected a config that counts epochs')
    cfg = on_folder(cfg, find_coco_folder(data), epochs=epochs)
    without_outputs(cfg, seed=0)
    return cfg


def steps_per_epoch(model: Model, data: str) -> int:
    from mmdet_ddetr.apis.finetune import innermost_dataset
    from mmdet_ddetr.datasets import read_coco

    loader = config_of(model, data).train_dataloader
    return math.ceil(len(read_coco(Path(innermost_dataset(loader).ann_file))['images']) / loader.batch_size)


def runner_to_measure(model: Model, data: str, out: Path):
    from mmdet_ddetr.apis.finetune import build_runner

    cfg = config_of(model, data)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.work_dir = str(out / 'timing')
    cfg.experiment_name = f'{model.slug}_timing'
    return build_runner(cfg)


def count_parameters(model: Model, data: str, out: Path) -> int:
    return sum(parameter.numel() for parameter in runner_to_measure(model, data, out).model.parameters())


def make_step(model: Model, data: str, out: Path):
    """A training step on a batch of the data, without the loading of it."""
    from mmdet_ddetr.apis.finetune import silence

    runner = runner_to_measure(model, data, out)
    optim_wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    with silence():
        batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    runner.model.train()
    return lambda: runner.model.train_step(batch, optim_wrapper)


def make_recorder(name: str, run: dict, console):
    """A hook that completes ``run`` with its curve, which it prints, and the last epoch's loss."""
    from mmengine.hooks import Hook

    class Recorder(Hook):
        priority = 'VERY_LOW'

        def before_train_epoch(self, runner):
            self.losses = []

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.losses.append(float(outputs['loss']))

        def after_val_epoch(self, runner, metrics=None):
            point = figures_of(metrics)
            run['curve'].append(dict(epoch=runner.epoch, **point))
            print(f'{name}: epoch {runner.epoch}, AP {point["AP"]:.3f}', file=console, flush=True)

        def after_train_epoch(self, runner):
            run['loss'] = statistics.fmean(self.losses)

    return Recorder()


def train(model: Model, rate: float, epochs: int, evaluations: int, data: str, out: Path) -> dict:
    """A training, or its result, if ``out`` has it already.

    Args:
        rate: the config's learning rate is multiplied by it.
        evaluations: how many, about.

    Returns:
        ``lr``, ``epochs``, ``curve`` (figures of the val split by epoch), ``loss`` (mean of the last epoch), ``test``
        (figures of the test split at the end).
    """
    from mmdet_ddetr.apis.finetune import build_runner, silence

    path = out / f'{model.slug}_{epochs}e_rate{rate:g}.json'
    if path.exists():
        return json.loads(path.read_text())
    cfg = config_of(model, data, epochs)
    cfg.optim_wrapper.optimizer.lr *= rate
    cfg.train_cfg.val_interval = max(1, round(epochs / evaluations))
    cfg.work_dir = str(path.with_suffix(''))
    runner = build_runner(cfg)
    run = dict(lr=cfg.optim_wrapper.optimizer.lr, epochs=epochs, curve=[])
    with silence() as console:
        runner.register_hook(make_recorder(path.stem, run, console))
        runner.train()
        run['test'] = figures_of(runner.test())
    path.write_text(json.dumps(run))
    return run


def study(model: Model, rates: list[float], trial_epochs: int, epochs: int, data: str, out: Path, threads: int) -> dict:
    """Try the learning rates, train with the best."""
    warnings.filterwarnings('ignore')
    torch.set_num_threads(threads)
    trials = {rate: train(model, rate, trial_epochs, 1, data, out) for rate in rates} if len(rates) > 1 else {}
    rate = min(trials, key=lambda rate: trials[rate]['loss']) if trials else rates[0]
    return dict(trials=list(trials.values()), training=train(model, rate, epochs, EVALUATIONS, data, out))


def plan(models: list[Model], data: str, out: Path, seconds: float) -> dict:
    """Machine, data, time and memory of a step; measured once, so that an interrupted benchmark goes on as planned.

    Raises:
        SystemExit: ``out`` belongs to other models or data.
    """
    path = out / 'plan.json'
    request = dict(models=[asdict(model) | dict(options=list(model.options)) for model in models], data=data)
    if path.exists():
        planned = json.loads(path.read_text())
        if {key: planned[key] for key in request} != request:
            sys.exit(f'{out} holds a benchmark of other models or data: choose another --out')
        return planned
    device = get_device()
    samples = times({model.name: make_step(model, data, out) for model in models}, seconds, device)
    minutes = {model.name: min(samples[model.name]) * steps_per_epoch(model, data) / 60 for model in models}
    planned = request | {
        'machine': machine(device),
        'seconds per step': samples,
        'minutes per epoch': minutes,
        'parameters': {model.name: count_parameters(model, data, out) for model in models},
        'MB a step': {model.name: peak_memory(make_step, model, data, out, device=device) for model in models},
    }
    path.write_text(json.dumps(planned))
    return planned


def epoch_of(curve: list[dict], name: str, value: float) -> float | None:
    """The first epoch at which the curve, linear between its points from 0 at epoch 0, reaches the value."""
    last = {'epoch': 0, name: 0.0}
    for point in curve:
        if point[name] >= value:
            share = (value - last[name]) / (point[name] - last[name])
            return last['epoch'] + share * (point['epoch'] - last['epoch'])
        last = point
    return None


def crossings(results: dict, figure: str) -> list[list[str]]:
    """Epochs and minutes to shares of the first model's best, and how many times as many the first took."""
    first, minutes = next(iter(results['studies'])), results['minutes per epoch']
    highest = max(point[figure] for point in results['studies'][first]['training']['curve'])
    rows = []
    for value in (share * highest for share in (0.25, 0.5, 0.75, 1.0) if highest > 0):
        epochs = {n: epoch_of(study['training']['curve'], figure, value) for n, study in results['studies'].items()}
        for name, epoch in epochs.items():
            row = [f'{figure} {value:.3f}', name]
            if epoch is None:
                rows.append([*row, *['not reached'] * 2, '', ''])
                continue
            spent, of_first = epoch * minutes[name], epochs[first] * minutes[first]
            ratios = ['', ''] if name == first else [f'{epochs[first] / epoch:.1f}', f'{of_first / spent:.1f}']
            rows.append([*row, f'{epoch:.1f}', f'{spent:.1f}', *ratios])
    return rows


def report(results: dict) -> str:
    """Tables of the trials, of the trainings and of the epochs and minutes to equal AP."""
    studies, minutes = results['studies'], results['minutes per epoch']
    trials = [
        [name, f'{run["lr"]:.2g}', str(run['epochs']), f'{run["loss"]:.3f}', f'{run["curve"][-1]["AP"]:.3f}']
        for name, study in studies.items()
        for run in study['trials']
    ]
    trainings = []
    for name, study in studies.items():
        run, last = study['training'], study['training']['curve'][-1]
        seconds = milliseconds(results['seconds per step'][name])
        spent = f'{run["epochs"] * minutes[name]:.1f}'
        figures = [f'{split[figure]:.3f}' for split in (last, run['test']) for figure in FIGURES]
        size = f'{results["parameters"][name] / 1e6:.2f} M'
        memory = f'{results["MB a step"][name]:.0f}'
        trainings.append([name, size, f'{run["lr"]:.2g}', seconds, memory, str(run['epochs']), spent, *figures])
    equal = [row for figure in PLOTTED for row in crossings(results, figure)]
    first = next(iter(studies))
    tables = [
        (['model', 'learning rate tried', 'epochs', 'loss', 'AP'], trials),
        (
            [
                'model',
                'parameters',
                'learning rate',
                'ms a step',
                'MB a step',
                'epochs',
                'minutes',
                *FIGURES,
                *(f'test {name}' for name in FIGURES),
            ],
            trainings,
        ),
        (['to reach', 'model', 'epochs', 'minutes', f'{first} took x epochs', 'x minutes'], equal),
    ]
    return '\n\n'.join([results['machine'], *(table(header, rows) for header, rows in tables if rows)])


def plot(results: dict, path: Path):
    """A row for each figure, against epochs and against minutes."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(len(PLOTTED), 2, figsize=(9, 6.4), sharey='row', sharex='col', layout='constrained')
    for row, quantity in zip(panels, PLOTTED):
        for name, study in results['studies'].items():
            run = study['training']
            epochs = [0] + [point['epoch'] for point in run['curve']]
            values = [0.0] + [point[quantity] for point in run['curve']]
            row[0].plot(epochs, values, label=f'{name}, learning rate {run["lr"]:.2g}')
            row[1].plot([epoch * results['minutes per epoch'][name] for epoch in epochs], values)
        row[0].set_ylabel(f'{quantity} (val)')
        for panel in row:
            panel.grid(alpha=0.3)
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=3, fontsize=8)
    panels[-1, 0].set_xlabel('epochs')
    panels[-1, 1].set_xlabel('minutes of training steps')
    figure.suptitle(results['machine'], fontsize=8)
    figure.savefig(path, dpi=110)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'models',
        nargs='*',
        type=Model.parse,
        metavar='NAME=CONFIG[,key=value...]',
        help=f'the first is what the others are compared with (default: {", ".join(MODELS)})',
    )
    parser.add_argument('--data', metavar='DIR', help='folder in COCO format (default: shapes are drawn)')
    parser.add_argument(
        '--budget', type=float, default=11, metavar='MINUTES', help='of training steps (default: %(default)s)'
    )
    parser.add_argument(
        '--trial', type=float, default=1.5, metavar='MINUTES', help='for each learning rate (default: %(default)s)'
    )
    parser.add_argument(
        '--rates', type=float, nargs='+', default=[1 / 3, 1, 3], help="times the config's (default: 1/3, 1 and 3)"
    )
    parser.add_argument('--jobs', type=int, default=2, help='models trained at once (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='of each process (default: %(default)s)')
    parser.add_argument(
        '--seconds', type=float, default=20, help='of timing steps, for each model (default: %(default)s)'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmarks/convergence'),
        help='for trainings, .md, .json and .png (default: %(default)s)',
    )
    args = parser.parse_args()
    args.models = args.models or [Model.parse(text) for text in MODELS]
    if len({model.slug for model in args.models}) < len(args.models):
        parser.error('two models have the same name')
    return args


def main():
    args = parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.data or draw_shapes(args.out, **SHAPES)
    planned = plan(args.models, data, args.out, args.seconds)

    def epochs(model: Model, minutes: float) -> int:
        return max(1, round(minutes / planned['minutes per epoch'][model.name]))

    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context('spawn')) as pool:
        futures = {
            model.name: pool.submit(
                study,
                model,
                args.rates,
                epochs(model, args.trial),
                epochs(model, args.budget),
                data,
                args.out,
                args.threads,
            )
            for model in args.models
        }
        studies = {name: future.result() for name, future in futures.items()}

    results = planned | dict(studies=studies)
    (args.out / 'convergence.json').write_text(json.dumps(results, indent=1))
    text = report(results)
    (args.out / 'convergence.md').write_text(text + '\n')
    plot(results, args.out / 'convergence.png')
    print(text)
    print(f'written: {args.out}/convergence.md, .json, .png')


if __name__ == '__main__':
    main()
