"""Train a detector on a folder of labelled images, evaluate it and write annotated pictures.

python tools/finetune.py --data path/to/folder
"""

import argparse
import errno
import gc
import json
import os
import sys
import time
from pathlib import Path

from _cli import (
    CFG_OPTIONS_HELP,
    IMAGE_SIZE_HELP,
    Parser,
    image_size,
    number,
    positive,
    read_config,
    run,
    writable_folder,
)

STORED = 'options.json'  # in the work directory, of the training there
NO_SPACE = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
RESERVE = 10  # seconds for what comes after the test: pictures and report take 2, many times that with a large model


def make_parser():
    parser = Parser(
        description='Train a detector on a folder of labelled images, evaluate it and write annotated pictures',
    )
    parser.add_argument(
        '--data',
        metavar='DIR',
        help='folder of labelled images in the format of COCO, YOLO, Pascal VOC or CSV; it is found by itself',
    )
    parser.add_argument(
        '--config',
        default='deformable-detr-refine-twostage-dn_lite0_finetune',
        help='path of a config, or the name of one of this package (default: %(default)s); its data and classes are '
        'replaced',
    )
    parser.add_argument(
        '--backbone',
        choices=['lite0', 'lite1', 'lite2', 'r50'],
        help="EfficientNet-Lite or ResNet-50, with ImageNet weights (default: the config's)",
    )
    parser.add_argument('--image-size', type=image_size, metavar='PX', help=IMAGE_SIZE_HELP)
    parser.add_argument(
        '--work-dir',
        default='work_dirs/finetune',
        metavar='DIR',
        help='where all that is written goes (default: %(default)s)',
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        '--epochs', type=positive(int), metavar='N', help="length of the training (default: the config's)"
    )
    length.add_argument('--iters', type=positive(int), metavar='N', help='the same, in iterations')
    parser.add_argument(
        '--minutes',
        type=positive(float),
        metavar='M',
        help='train for as long as it takes to end, tested, after this time; with --epochs or --iters at most so long',
    )
    parser.add_argument('--batch-size', type=positive(int), metavar='N', help="images a step (default: the config's)")
    parser.add_argument(
        '--lr',
        type=positive(float),
        help="learning rate (default: the config's, times the root of the batch sizes' ratio)",
    )
    parser.add_argument(
        '--load-from',
        metavar='CHECKPOINT',
        help='weights to start from, of any layout in docs/checkpoints.md, or hf://owner/name',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with the training in the work directory, with its options and the rest of its time; what is given '
        'anew counts',
    )
    parser.add_argument(
        '--freeze',
        choices=['backbone', 'encoder'],
        help='keep the backbone, or backbone, neck and encoder, as they were loaded: faster',
    )
    parser.add_argument('--ema', action='store_true', help='average the weights, and evaluate them beside the raw ones')
    parser.add_argument(
        '--patience',
        type=positive(int),
        metavar='N',
        help='end the training after N evaluations in a row without a better AP (default: never)',
    )
    parser.add_argument(
        '--tensorboard', action='store_true', help="write TensorBoard's files too: tensorboard --logdir WORK_DIR"
    )
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto')
    parser.add_argument(
        '--seed',
        type=number(int, 'a seed from 0 to 4294967295', lambda value: 0 <= value < 2**32),
        default=0,
        help='of all random generators (default: %(default)s)',
    )
    parser.add_argument(
        '--check', action='store_true', help='check the data, write a page of sample pictures, and stop'
    )
    parser.add_argument('--decode', action='store_true', help='decode every image while checking, not only its ends')
    parser.add_argument('--drop-bad', action='store_true', help='train without the images and boxes that have errors')
    parser.add_argument(
        '--val-fraction',
        type=number(float, 'a share between 0 and 1', lambda value: 0 < value < 1),
        metavar='F',
        help='share of the train images that become val where the folder has no val split (default: 0.15)',
    )
    parser.add_argument(
        '--pictures',
        type=number(int, '0 or more', lambda value: value >= 0),
        default=12,
        metavar='N',
        help='how many annotated pictures to write (default: %(default)s)',
    )
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help=CFG_OPTIONS_HELP)
    return parser


def parse_args(argv=None):
    parser = make_parser()
    stored = use_stored_options(parser, argv)
    args = parser.parse_args(argv)
    if args.data is None:
        missing = Path(args.work_dir, STORED)
        no_training = f'--resume: {missing} is missing, so no training began there; ' if args.resume else ''
        parser.error(f'{no_training}give --data, a folder of labelled images')
    if args.epochs and args.iters:  # one of them is that of the training that is resumed
        setattr(args, 'epochs' if args.epochs == stored.get('epochs') else 'iters', None)
    return args


def given(args):
    """The options that are not at their defaults."""
    parser = make_parser()
    return {name: value for name, value in vars(args).items() if value != parser.get_default(name)}


def use_stored_options(parser, argv):
    """Let the options of the training that is resumed be the defaults; returns them."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument('--resume', action='store_true')
    early.add_argument('--work-dir', default=parser.get_default('work_dir'))
    known, _ = early.parse_known_args(argv)
    stored = stored_options(known.work_dir) if known.resume else {}
    parser.set_defaults(**stored)
    return stored


def stored_options(work_dir):
    path = Path(work_dir, STORED)
    return read_stored(path) if path.is_file() else {}


def has_new_schedule(args):
    """Whether a resumed training is to have another one than it began with."""
    stored = stored_options(args.work_dir)
    return any(getattr(args, name) != stored.get(name) for name in ('epochs', 'iters', 'batch_size', 'lr'))


def read_stored(path):
    try:
        options = json.loads(path.read_text())
        if options.keys() <= vars(make_parser().parse_args([])).keys():
            return options
    except (ValueError, AttributeError):
        pass
    sys.exit(f'{path}: these are no options of this tool; remove the file, and give --data and the rest with --resume')


def store_options(args):
    """Keep the options for ``--resume``, which may be called in another folder."""
    from mmdet_ddetr.files import write_atomically

    stored = {name: value for name, value in vars(args).items() if name not in ('resume', 'check', 'work_dir')}
    for name in ('data', 'config', 'load_from'):
        if stored[name] and Path(stored[name]).exists():
            stored[name] = os.path.abspath(stored[name])
    write_atomically(Path(args.work_dir, STORED), json.dumps(stored, indent=1).encode())


def main(argv=None):
    args = parse_args(argv)
    start = time.monotonic()
    if args.device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''  # before torch looks
    run(lambda: finetune(args, start), FileNotFoundError)


def finetune(args, start):
    import mmdet_ddetr  # noqa: F401  # isort: skip  # before torch: it sets how long threads wait
    import torch
    from mmengine.hooks import Hook

    from mmdet_ddetr.apis import DDetrInferencer
    from mmdet_ddetr.apis.data_check import add_alike, inspect_folder
    from mmdet_ddetr.apis.data_page import write_data_page
    from mmdet_ddetr.apis.finetune import (
        build_runner,
        configure,
        length_of,
        silence,
        train_by_the_clock,
        unfit_weights,
    )
    from mmdet_ddetr.apis.finetune_options import add_ema, add_tensorboard, set_backbone
    from mmdet_ddetr.apis.image_size import set_image_size
    from mmdet_ddetr.apis.pictures import write_comparisons
    from mmdet_ddetr.apis.report import Training, write_report
    from mmdet_ddetr.apis.report_results import keep_evaluation
    from mmdet_ddetr.checkpoints import check_exists
    from mmdet_ddetr.checkpoints.drawings import SCHEME
    from mmdet_ddetr.datasets import find_data, read_coco
    from mmdet_ddetr.files import write_atomically
    from mmdet_ddetr.hooks import ProgressBarHook
    from mmdet_ddetr.hooks.fit_checkpoint import hook_of
    from mmdet_ddetr.registry import HOOKS, is_a

    gc.freeze()  # mmengine looks for garbage with each data set: 0.4 s among all that is imported here
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('--device cuda: this PyTorch sees no CUDA device')
    check_exists(args.load_from)
    work_dir = writable_folder('--work-dir', args.work_dir, later=True)
    if not (args.resume or args.check) and (has_checkpoint(work_dir) or best_checkpoints(work_dir)):
        sys.exit(
            f'--work-dir {work_dir} holds a training: --resume goes on with it, another --work-dir begins a new one'
        )
    cfg = read_config(args.config, args.cfg_options)
    if args.backbone:
        set_backbone(cfg, args.backbone)
    if args.image_size:
        set_image_size(cfg, args.image_size)
    if args.ema:
        add_ema(cfg)
    if args.tensorboard:
        add_tensorboard(cfg)
    folder = find_data(args.data, work_dir, args.val_fraction, args.seed, args.decode, args.load_from)
    found = inspect_folder(folder, cfg.model.get('num_queries'), args.decode)
    print(f'{found.tables}\n')
    if args.check:
        add_alike(found)
        print(f'pictures to look at: {write_data_page(found, work_dir / "data.html")}\n', flush=True)
    folder, reports, findings = found.heal(work_dir, args.drop_bad)
    print(findings)
    if args.check:
        return

    classes = reports['train'].classes
    cfg = configure(cfg, folder, classes, epochs=args.epochs, iters=args.iters, batch_size=args.batch_size, lr=args.lr)
    cfg.work_dir = str(work_dir)
    resumes = args.resume and has_checkpoint(work_dir)
    cfg.resume, cfg.load_from = resumes, None if resumes else args.load_from or cfg.get('load_from')
    if args.resume and not resumes:
        print(f'{work_dir} has no checkpoint to resume from: the training starts at the beginning')
    if resumes and cfg.default_hooks.get('resume') and has_new_schedule(args):
        cfg.default_hooks.resume.schedule = 'config'
    cfg.randomness = dict(seed=args.seed)
    hooks = [hook for hook in cfg.get('custom_hooks', []) if not is_a(hook.type, HOOKS, ProgressBarHook)]
    cfg.custom_hooks = [*hooks, dict(type='mmdet_ddetr.ProgressBarHook')]
    if args.freeze:
        cfg.custom_hooks.append(dict(type='mmdet_ddetr.FreezeHook', part=args.freeze))
    if args.patience:
        cfg.custom_hooks.append(dict(type='mmdet_ddetr.PatienceHook', patience=args.patience))
    cfg.default_hooks.signals = dict(type='mmdet_ddetr.SignalHook', finish=True)
    length = '{} {}'.format(*length_of(cfg))
    if args.minutes:
        try:
            cfg = train_by_the_clock(cfg, 60 * args.minutes - RESERVE, at_most=bool(args.epochs or args.iters))
        except ValueError as error:
            sys.exit(f'--minutes {args.minutes:g}: {error}')
        length = f'{args.minutes:g} minutes in all' + f', at most {length},' * bool(args.epochs or args.iters)
    n_train = len(reports['train'].coco['images'])
    print(
        f'{"Going on with the training" if resumes else "Training"} for {length} on {n_train} images, '
        f'{cfg.train_dataloader.batch_size} at a time, learning rate {cfg.optim_wrapper.optimizer.lr:.2g}, '
        f'{len(classes)} classes: {", ".join(classes)}',
        flush=True,
    )

    runner = build_runner(cfg)
    started = Hook()

    def begin(runner):  # all is built by then: the options are no mistake
        store_options(args)
        started.iteration = runner.iter

    started.before_train = begin
    runner.register_hook(started)
    if cfg.load_from:
        with silence():
            n_loaded, unfit, notes = unfit_weights(runner.model, cfg.load_from, classes, hook_of(runner))
        if not n_loaded:
            sys.exit(
                f'{"--load-from" if args.load_from else "load_from"} {cfg.load_from}: no tensor in it fits the model'
            )
        known = ', the start of this package, which has learnt from drawn shapes' * cfg.load_from.startswith(SCHEME)
        print(f'{n_loaded} tensors from {cfg.load_from}{known}', end='')
        if args.load_from:  # of the config's own start, only classes and backbone are new, as always
            print(f'; new, or in part: {", ".join(unfit) or "none"}', *notes, sep='\n', end='')
        print(flush=True)
    if resumes or (cfg.load_from and not any(name.startswith('backbone.') for name in unfit)):
        runner.model.backbone.init_cfg = None  # its ImageNet weights would be downloaded for nothing
    with silence():
        ended_early = train(runner)
        if resumes and runner.iter == started.iteration and not ended_early:
            ended_early = '; the training was finished before: to go on from it, begin another with --load-from'
        checkpoint = checkpoint_to_keep(runner)
        if checkpoint is None:
            sys.exit(f'no checkpoint is there to test{ended_early}')
        runner._resume = runner.cfg.resume = False  # a resumed EMAHook takes the raw weights of what is loaded
        runner.load_checkpoint(checkpoint)
        keep_evaluation(runner)
        metrics = runner.test()

    split = folder.test.name
    config = work_dir / 'config.py'
    results = work_dir / 'metrics.json'
    minutes = (time.monotonic() - start) / 60
    figures = {key: None if value != value else value for key, value in metrics.items()}  # JSON has no NaN
    print(f'\n{table_of(metrics, classes)}')
    print(f'measured on the {split} split, {minutes:.1f} minutes after the start{ended_early}\n', flush=True)

    def dump():
        runner.cfg.dump(config)
        return config

    def keep_figures():
        told = dict(split=split, minutes=minutes, checkpoint=str(checkpoint), **figures)
        write_atomically(results, json.dumps(told, indent=1).encode())
        return results

    training = Training(
        runner, found, folder, classes, metrics, checkpoint, config, given(args), minutes, ended_early.lstrip('; ')
    )

    def draw():
        inferencer = DDetrInferencer(weights=checkpoint, show_progress=False)
        coco, images, out = read_coco(folder.test.ann_file), folder.test.image_dir, work_dir / 'pictures'
        write_comparisons(inferencer, coco, images, out, args.pictures, training.score)
        return out

    def report():
        return write_report(training, work_dir / 'report.html')

    for name, path in (
        ('checkpoint', checkpoint),
        ('config', attempt(dump)),
        ('log', runner.logger.log_file),
        ('metrics', attempt(keep_figures)),
        ('pictures', attempt(draw)),
        ('report', attempt(report)),
    ):
        print(f'{name:>10}  {path}')


def attempt(write):
    """What ``write`` returns, or a sentence: where the training's results are safe, nothing else may take them away."""
    from mmdet_ddetr.apis.finetune import silence
    from mmdet_ddetr.apis.mistakes import keep_traceback

    try:
        with silence():
            return write()
    except Exception as error:
        return f'could not be written: {type(error).__name__}: {error}{keep_traceback(error)}'


def train(runner):
    """Train; Ctrl-C ends it, and what is there is evaluated. Returns why it ended early, for the last lines."""
    from mmdet_ddetr.hooks.signals import EXIT_CODE, Interrupted

    try:
        runner.train()
    except OSError as error:
        if error.errno not in NO_SPACE or not runner.iter:
            raise
        return f'; {error.filename}: {error.strerror}: the training ended after iteration {runner.iter}'
    except Interrupted as interrupted:
        runner.train_loop._iter = interrupted.iteration
        runner.val_loop.run()
        runner.call_hook('after_train')
        return f'; Ctrl-C ended the training after iteration {interrupted.iteration}, and --resume goes on with it'
    except SystemExit as error:
        if error.code == EXIT_CODE:
            print(f'finetune stopped by a signal; --work-dir {runner.work_dir} --resume goes on', file=sys.stderr)
        raise
    if runner.train_loop.stop_training:
        return f'; the training ended early, after iteration {runner.iter}'
    return ''


def has_checkpoint(work_dir):
    from mmdet_ddetr.hooks.last_checkpoint import NAMES

    return work_dir.is_dir() and any(NAMES.fullmatch(path.name) for path in work_dir.iterdir())


def best_checkpoints(work_dir):
    """The last written first."""
    return sorted(Path(work_dir).glob('best_*.pth'), key=lambda path: path.stat().st_mtime, reverse=True)


def checkpoint_to_keep(runner):
    """The best one, or else the last; None: there is none.

    A training that was killed after it had written a new best one resumes without knowing of it; the file is there.
    """
    known = [runner.message_hub.get_info(name) for name in ('best_ckpt', 'last_ckpt')]
    found = best_checkpoints(runner.work_dir)
    return next((str(path) for path in (known[0], *found, known[1]) if path and Path(path).exists()), None)


def table_of(metrics, classes):
    """The COCO metric: AP over all IoUs, at 0.50 and 0.75, of small, medium and large boxes, and of each class."""

    def figure(key):
        value = metrics.get(f'coco/{key}', float('nan'))
        return f'{value:.3f}' if value >= 0 else '-'  # -1 and NaN: no such boxes

    names = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
    keys = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'bbox_mAP_s', 'bbox_mAP_m', 'bbox_mAP_l')
    lines = [
        '  '.join(f'{name:>5}' for name in names),
        '  '.join(f'{figure(key):>5}' for key in keys),
        'AP of each class:',
    ]
    width = max(len(name) for name in classes)
    return '\n'.join([*lines, *(f'  {name:{width}}  {figure(f"{name}_precision")}' for name in classes)])


if __name__ == '__main__':
    main()
