"""What a folder of labelled images makes of a detector in the same minutes: this package's beside MMDetection's own.

    python benchmarks/small_data.py --data shapes DIR           # every model, 5 and 15 minutes: five hours a seed
    python benchmarks/small_data.py --data DIR --models ours rtmdet_tiny --minutes 5 --seeds 0 1 2
    python benchmarks/small_data.py --data DIR --models ours "wide=retinanet,model.neck.out_channels=128"
    python benchmarks/small_data.py --draw                      # table and plot of what is there

`shapes` are the drawings of `make demo`, DIR any folder that tools/finetune.py takes. `ours` is what those two train.
The others are MMDetection's classes with the settings of peers/*.py, which say why; of our config they get data, image
size, augmentations, images a step, backbone with its ImageNet weights, and schedule: warm-up, then a cosine to the end.
Each training is a process of its own that ends, evaluated, when its minutes since its start are over (TimedTrainLoop).

It evaluates the test split, and its last evaluation counts, so that nothing is chosen by it. The minutes of the plot
are those since the start, evaluations included. A finished training is a line of results.jsonl in --out and is not
repeated: an interrupted benchmark goes on with the next.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections import defaultdict, deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from _measure import table
from _training import Model, draw_shapes, figures_of, on_folder, without_outputs

PEERS = Path(__file__).parent / 'peers'
OURS = 'ours'
NAMES = {  # of the models trained by default, in the table
    OURS: 'mmdet_ddetr',
    'dino': 'DINO',
    'deformable_detr': 'Deformable DETR',
    'rtmdet_tiny': 'RTMDet-tiny',
    'atss': 'ATSS',
    'retinanet': 'RetinaNet',
    'faster_rcnn': 'Faster R-CNN',
}
SHAPES = 'shapes'
CONFIGS = {SHAPES: 'deformable-detr-refine-twostage-dn_lite0_shapes'}  # of make demo
DEFAULT = 'deformable-detr-refine-twostage-dn_lite0_finetune'  # of tools/finetune.py
CLOCKS = {'wall': 'minutes', 'processor': 'minutes of processor time'}
LOSSES = 50  # iterations, whose mean is the loss told
RESULTS = 'results.jsonl'


def parse_model(text: str) -> Model:
    """Read a name of ours, or NAME=CONFIG,key=value,... as convergence.py has it."""
    return Model.parse(text if '=' in text.split(',')[0] else f'{text}={text}')


def config_of(model: Model, folder, own: str):
    """The model's config on a folder.

    Args:
        own: our config for these data, whose data pipeline, backbone and schedule the peers are given.
    """
    from mmdet_ddetr.apis import get_config
    from mmdet_ddetr.apis.finetune import count_iterations
    from mmdet_ddetr.apis.scale_lr import scale_lr
    from mmdet_ddetr.datasets import read_coco

    cfg = get_config(own)
    path = PEERS / f'{model.config}.py'
    if path.exists():
        peer = get_config(path)
        if peer.model.backbone.type == cfg.model.backbone.type:
            peer.model.backbone = {**cfg.model.backbone, **peer.model.backbone}
        peer.model.data_preprocessor = cfg.model.data_preprocessor
        cfg.model, cfg.optim_wrapper, cfg.auto_scale_lr = peer.model, peer.optim_wrapper, peer.auto_scale_lr
        cfg.load_from = None  # it is our model's
        scale_lr(cfg)
    elif model.config != OURS:
        cfg = get_config(model.config)
    cfg = on_folder(cfg, folder)
    model.change(cfg)
    count_iterations(cfg, len(read_coco(folder.train.ann_file)['images']))
    return cfg


def make_recorder(run: dict, console):
    """A hook that completes ``run`` with its curve, which it prints, its iterations and its losses."""
    from mmengine.hooks import Hook

    def minutes_of(runner):
        budget = runner.train_loop.budget
        return run['minutes'] - budget.left / 60

    class Recorder(Hook):
        priority = 'VERY_LOW'

        def before_run(self, runner):
            self.losses = deque(maxlen=LOSSES)

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.losses.append(float(outputs['loss']))
            run['loss'] = statistics.fmean(self.losses)
            run.setdefault('first loss', run['loss'])
            run['iterations'] = runner.iter + 1

        def before_val_epoch(self, runner):
            self.minutes = minutes_of(runner)

        def after_val_epoch(self, runner, metrics=None):
            point = dict(minutes=self.minutes, iteration=runner.iter, **figures_of(metrics))
            run['curve'].append(point)
            print(
                f'{run["model"]}, {run["data"]}, seed {run["seed"]}: {point["minutes"]:.1f} of {run["minutes"]:g} min, '
                f'iteration {point["iteration"]}, loss {run["loss"]:.3f}, AP {point["AP"]:.3f}',
                file=console,
                flush=True,
            )

        def after_run(self, runner):
            run['took'] = minutes_of(runner)

    return Recorder()


def request_of(model: Model, data: str, minutes: float, seed: int, threads: int, clock: str) -> dict:
    """What tells a line of the results from the others."""
    return dict(
        model=model.name,
        config=model.config,
        options=list(model.options),
        data=data if data == SHAPES else Path(data).resolve().name,
        minutes=minutes,
        seed=seed,
        threads=threads,
        clock=clock,
    )


def train(model: Model, data: str, minutes: float, seed: int, threads: int, clock: str, out: Path) -> dict:
    """Train in this process, whose start the minutes count from.

    Args:
        clock: a key of CLOCKS.

    Returns:
        ``request_of`` with ``curve`` (minutes, iteration and figures of the test split at each evaluation),
        ``iterations``, ``images`` (a step), ``lr``, ``parameters``, ``first loss`` and ``loss`` (mean of the last
        iterations), ``took`` (minutes until the end of the last evaluation), ``machine``.
    """
    import torch
    from _measure import machine

    from mmdet_ddetr.apis.finetune import build_runner, silence, train_by_the_clock
    from mmdet_ddetr.datasets import find_data
    from mmdet_ddetr.loops import timed

    warnings.filterwarnings('ignore')
    torch.set_num_threads(threads)
    run = request_of(model, data, minutes, seed, threads, clock)
    work_dir = out / run['data']
    folder = find_data(work_dir / SHAPES if data == SHAPES else data, work_dir)
    cfg = config_of(model, folder, CONFIGS.get(data, DEFAULT))
    cfg.val_dataloader, cfg.val_evaluator = cfg.test_dataloader, cfg.test_evaluator
    cfg = train_by_the_clock(cfg, 60 * minutes)
    cfg.train_cfg.test_images = 0  # the last evaluation is the test
    if clock == 'processor':
        timed.clock = time.process_time
        cfg.train_cfg.update(from_start=False, seconds=60 * minutes - time.process_time())
    without_outputs(cfg, seed)
    cfg.work_dir = str(work_dir / f'{model.slug}_{minutes:g}min_seed{seed}')
    with silence() as console:
        runner = build_runner(cfg)
        run.update(
            lr=cfg.optim_wrapper.optimizer.lr,
            images=cfg.train_dataloader.batch_size,
            parameters=sum(parameter.numel() for parameter in runner.model.parameters()),
            curve=[],
        )
        runner.register_hook(make_recorder(run, console))
        runner.train()
    run['machine'], _, run['date'] = machine('cpu').rpartition('; ')
    return run


def read_results(out: Path) -> list[dict]:
    path = out / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_all(args) -> int:
    """Train what is not in the results yet, one after the other; how many failed."""
    failed = 0
    os.environ.update(OMP_NUM_THREADS=str(args.threads), OMP_WAIT_POLICY='passive')  # read when the process starts
    for data in args.data:
        if data == SHAPES:
            draw_shapes(args.out / SHAPES)
        # seeds outside: a benchmark that is stopped has them for all models alike
        for seed in args.seeds:
            for minutes in args.minutes:
                for model in args.models:
                    what = (model, data, minutes, seed, args.threads, args.clock)
                    request = request_of(*what)
                    if any(request.items() <= run.items() for run in read_results(args.out)):
                        continue
                    try:
                        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
                            run = pool.submit(train, *what, args.out).result()
                    except Exception as error:
                        print(f'{model.name} on {data}: {type(error).__name__}: {error}', file=sys.stderr, flush=True)
                        failed += 1
                        continue
                    with (args.out / RESULTS).open('a') as file:
                        file.write(json.dumps(run) + '\n')
    return failed


def grouped(runs: list[dict]) -> dict:
    """{(data, clock, machine): {model: {minutes: runs}}}, the models in the order of AP in their longest trainings."""
    groups = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in runs:
        groups[run['data'], run['clock'], run['machine']][run['model']][run['minutes']].append(run)
    return {
        key: dict(sorted(models.items(), key=lambda item: -mean(item[1][max(item[1])], 'AP')))
        for key, models in groups.items()
    }


def mean(runs: list[dict], figure: str) -> float:
    return statistics.fmean(run['curve'][-1][figure] for run in runs)


def cell(runs: list[dict], figure: str) -> str:
    """The mean, and the range of several seeds."""
    values = [run['curve'][-1][figure] for run in runs]
    text = f'{statistics.fmean(values):.3f}'
    return text if len(values) == 1 else f'{text} ({min(values):.3f}-{max(values):.3f})'


def report(runs: list[dict]) -> str:
    """A table for each data set, clock and machine."""
    parts = []
    for (data, clock, machine), models in grouped(runs).items():
        lengths = sorted({minutes for by_minutes in models.values() for minutes in by_minutes})
        rows = []
        for name, by_minutes in models.items():
            some = next(iter(by_minutes.values()))[0]
            row = [NAMES.get(name, name), f'{some["parameters"] / 1e6:.2f} M', f'{some["lr"]:.2g}']
            for minutes in lengths:
                there = by_minutes.get(minutes)
                iterations = there and f'{statistics.fmean(run["iterations"] for run in there):.0f}'
                row += [iterations, cell(there, 'AP'), cell(there, 'AP50')] if there else [''] * 3
            rows.append(row)
        header = ['model', 'parameters', 'learning rate']
        for minutes in lengths:
            header += [f'{minutes:g} min: iterations', 'AP', 'AP50']
        days = sorted({run['date'] for by in models.values() for some in by.values() for run in some})
        seeds = sorted({run['seed'] for by in models.values() for some in by.values() for run in some})
        seeds = f'seed {seeds[0]}' if len(seeds) == 1 else f'seeds {", ".join(map(str, seeds))}'
        parts.append(
            f'{data}, test split, {CLOCKS[clock]}, {seeds}; {machine}; {" to ".join(sorted({days[0], days[-1]}))}'
        )
        parts.append(table(header, rows))
    return '\n\n'.join(parts)


def plot(runs: list[dict], path: Path) -> None:
    """A panel for each data set, clock and machine: AP of the test split against minutes, a line for each training."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    groups = grouped(runs)
    names = sorted({run['model'] for run in runs}, key=lambda name: [*NAMES, name].index(name))
    colours = {name: f'C{i}' for i, name in enumerate(names)}
    figure, panels = plt.subplots(
        1, len(groups), figsize=(5.2 * len(groups) + 0.8, 4.6), squeeze=False, layout='constrained'
    )
    for panel, ((data, clock, _), models) in zip(panels[0], groups.items()):
        longest = max(minutes for by_minutes in models.values() for minutes in by_minutes)
        for name, by_minutes in models.items():
            for minutes, some in by_minutes.items():
                for run in some:
                    panel.plot(
                        [0, *(point['minutes'] for point in run['curve'])],
                        [0, *(point['AP'] for point in run['curve'])],
                        color=colours[name],
                        linestyle='-' if minutes == longest else '--',
                        linewidth=2 if name == OURS else 1,
                        marker='o',
                        markersize=2,
                    )
        panel.set_title(data, fontsize=10)
        panel.set_xlabel(f'{CLOCKS[clock]} since the start', fontsize=9)
        panel.set_ylabel('AP (test)', fontsize=9)
        panel.grid(alpha=0.3)
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
    lines = [plt.Line2D([], [], color=colours[name], linewidth=2 if name == OURS else 1) for name in names]
    figure.legend(lines, [NAMES.get(name, name) for name in names], loc='outside lower center', ncols=4, fontsize=8)
    figure.suptitle(' | '.join(sorted({machine for *_, machine in groups})), fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(out: Path) -> str:
    """Write table and plot of the results there; returns the table."""
    runs = read_results(out)
    text = report(runs)
    (out / 'small_data.md').write_text(text + '\n')
    plot(runs, out / 'small_data.png')
    return text


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--models',
        nargs='+',
        type=parse_model,
        default=[parse_model(name) for name in NAMES],
        metavar='NAME[=CONFIG[,key=value...]]',
        help=f'of {OURS} and peers/*.py; or a CONFIG of those or of this package, changed (default: {" ".join(NAMES)})',
    )
    parser.add_argument(
        '--data', nargs='+', default=[SHAPES], metavar='DIR', help=f'folders, or {SHAPES} (default: %(default)s)'
    )
    parser.add_argument(
        '--minutes', type=float, nargs='+', default=[5, 15], help='of each training, from its start (default: 5 15)'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='default: 0')
    parser.add_argument('--threads', type=int, default=2, help='of each training (default: %(default)s)')
    parser.add_argument(
        '--processor-time',
        dest='clock',
        action='store_const',
        const='processor',
        default='wall',
        help='count what the process takes of the processor, on a machine that has other work; with --threads 1',
    )
    parser.add_argument('--draw', action='store_true', help='train nothing: table and plot of what is there')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmarks/small_data'),
        help=f'for {RESULTS}, .md, .png and logs (default: %(default)s)',
    )
    args = parser.parse_args(argv)
    if args.clock == 'processor' and args.threads != 1:
        parser.error(f'--processor-time counts each of {args.threads} threads: give --threads 1')
    if len({model.slug for model in args.models}) < len(args.models):
        parser.error('two models have the same name')
    for model in args.models:
        if model.config == model.name and model.config not in (OURS, *(path.stem for path in PEERS.glob('*.py'))):
            parser.error(f'no model {model.name!r}: {OURS}, {", ".join(sorted(p.stem for p in PEERS.glob("*.py")))}')
    if args.draw and not (args.out / RESULTS).exists():
        parser.error(f'--draw: {args.out / RESULTS} is missing; train first, or give the --out of a benchmark')
    return args


def main():
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0 if args.draw else run_all(args)
    if read_results(args.out):
        print(draw(args.out))
        print(f'written: {args.out}/small_data.md, small_data.png, {RESULTS}')
    sys.exit(f'{failed} trainings failed' if failed else 0)


if __name__ == '__main__':
    main()
