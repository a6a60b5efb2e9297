"""Evaluate a checkpoint on the config's test data.

python tools/test.py deformable-detr_r50_16xb2-50e_coco epoch_50.pth --show-dir pictures
"""

from _cli import Parser, add_common_arguments, add_optimize, load_config, run


def parse_args():
    parser = Parser(description='Evaluate a checkpoint')
    parser.add_argument('config', help='path of a config, or the name of one of this package')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions, for offline evaluation')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='write pictures to <work dir>/<time>/DIR')
    parser.add_argument('--wait-time', type=float, default=2, metavar='SECONDS', help='how long --show shows a picture')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation: tta_model, tta_pipeline of the config'
    )
    add_optimize(parser, 'test what mmdet_ddetr.optimize_for_inference makes of the model')
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out: {args.out!r} should end with .pkl or .pickle')
    return args


def use_tta(cfg):
    """Turn the model and pipeline of ``cfg`` into their test-time augmentations, by default with and without a flip."""
    from mmengine.config import ConfigDict

    dataset = cfg.test_dataloader.dataset
    tta_model = cfg.get('tta_model') or dict(type='mmdet_ddetr.DDetrTTAModel')
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    tta_pipeline = cfg.get('tta_pipeline') or [
        *dataset.pipeline[:-1],
        dict(
            type='TestTimeAug',
            transforms=[
                [dict(type='mmdet.RandomFlip', prob=0.0), dict(type='mmdet.RandomFlip', prob=1.0)],
                [dict(type='mmdet.PackDetInputs', meta_keys=meta_keys)],
            ],
        ),
    ]
    cfg.model = ConfigDict(**tta_model, module=cfg.model)
    dataset.pipeline = tta_pipeline


def main():
    args = parse_args()
    cfg = load_config(args)

    from mmdet.engine.hooks.utils import trigger_visualization_hook
    from mmdet.evaluation import DumpDetResults

    from mmdet_ddetr.apis.runner import make_runner

    cfg.load_from, cfg.resume = args.checkpoint, False  # the config may be that of a resumed training
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        use_tta(cfg)

    if args.optimize:
        hook = dict(type='mmdet_ddetr.OptimizeForInferenceHook', dtype=args.optimize)
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]

    runner = make_runner(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    run(main)
