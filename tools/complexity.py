"""Parameters, GFLOPs and images a second of detectors.

python tools/complexity.py deformable-detr_r50_16xb2-50e_coco deformable-detr-refine_r50_16xb2-50e_coco
"""

from pathlib import Path

from _cli import CFG_OPTIONS_HELP, Parser, read_config, run

NOTE = """\
params: millions, without frozen batch norms, as the DETR papers count; all: with them, as MMDetection counts.
GFLOPs: multiply-adds counted as one, as the DETR papers count, for one image of {height} x {width}.
FPS: images a second in batches of {batch}, network and selection of boxes, on {device}."""


def parse_args(argv=None):
    parser = Parser(description='Parameters, GFLOPs and images a second of detectors')
    parser.add_argument('config', nargs='+', help='path of a config, or the name of one of this package')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(800, 1120), metavar=('H', 'W'), help='of the image (default: 800 1120)'
    )
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto', help='for FPS (default: auto)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='for FPS (default: %(default)s)')
    parser.add_argument(
        '--seconds', type=float, default=10, metavar='S', help='time to measure FPS in; 0: do not (default: 10)'
    )
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help=CFG_OPTIONS_HELP)
    return parser.parse_args(argv)


def main():
    args = parse_args()

    import mmdet_ddetr  # noqa: F401  # isort: skip  # before torch: it sets how long threads wait
    import torch

    from mmdet_ddetr.apis.complexity import build_detector, count_multiply_adds, count_parameters, measure_speed

    device = args.device if args.device != 'auto' else 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cuda':
        hardware = torch.cuda.get_device_name()
    else:
        hardware = f'CPU, {torch.get_num_threads()} threads'
    configs = {Path(name).stem: read_config(name, args.cfg_options) for name in args.config}
    width = max(map(len, configs))
    print(f'{"config":{width}}  {"params":>8}  {"all":>8}  {"GFLOPs":>7}  {"FPS":>6}')
    for config, cfg in configs.items():
        model = build_detector(cfg).to(device)
        parameters = count_parameters(model)
        giga = count_multiply_adds(model, args.size) / 1e9
        speed = f'{measure_speed(model, args.size, args.batch_size, args.seconds):6.2f}' if args.seconds else '     -'
        print(
            f'{config:{width}}  {parameters.paper / 1e6:8.3f}  {parameters.total / 1e6:8.3f}  {giga:7.1f}  {speed}',
            flush=True,
        )
    print(NOTE.format(height=args.size[0], width=args.size[1], batch=args.batch_size, device=hardware))


if __name__ == '__main__':
    run(main)
