"""Train a detector.

python tools/train.py deformable-detr_r50_16xb2-50e_coco --work-dir work_dirs/r50
"""

from _cli import Parser, add_common_arguments, load_config, run


def parse_args():
    parser = Parser(description='Train a detector')
    parser.add_argument('config', help='path of a config, or the name of one of this package')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by images a step / auto_scale_lr.base_batch_size, where the config does not do '
        'so anyway (auto_scale_lr.enable; auto_scale_lr.rule: linear or sqrt)',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without a path, from the last one in the work directory',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='compare the classes of data, metrics and model (and of load_from), print them and stop',
    )
    parser.add_argument('--seed', type=int, help='seed of all random generators (default: a random one, logged)')
    add_common_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = load_config(args)

    if args.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise SystemExit(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size to scale from')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=args.seed)

    from mmdet_ddetr.apis.runner import make_runner
    from mmdet_ddetr.apis.scale_lr import scale_lr

    if args.check:
        check(cfg)
        return
    scaled = scale_lr(cfg)
    runner = make_runner(cfg)
    if scaled:
        runner.logger.info(scaled)
    runner.train()


def check(cfg):
    """Print the classes, or what is wrong with them."""
    import tempfile

    from mmdet_ddetr.apis.class_table import check_classes
    from mmdet_ddetr.apis.finetune import build_runner, silence

    with tempfile.TemporaryDirectory() as cfg.work_dir, silence():  # the real one gets its log from a training
        table = check_classes(build_runner(cfg))
    print(table)


if __name__ == '__main__':
    run(main)
