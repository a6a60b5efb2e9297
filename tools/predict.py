"""Detect with a file that tools/export.py wrote, or with a checkpoint.

python tools/predict.py --weights work_dirs/demo/best.pth --source photos street.mp4 --conf 0.3
"""

import sys
from pathlib import Path

from _cli import Parser, add_optimize, naming, run

FORMATS = ('json', 'csv', 'coco')


def parse_args(argv=None):
    parser = Parser(
        description='Detect with a file that tools/export.py wrote, or with a checkpoint',
        epilog='What cannot be read is named and left out; the exit code is 1 then. See docs/inference.md.',
    )
    parser.add_argument(
        '--weights',
        required=True,
        metavar='FILE',
        help='a checkpoint, or .onnx, .xml of OpenVINO, .pt2 of torch.export or AOTInductor',
    )
    parser.add_argument(
        '--source',
        required=True,
        nargs='+',
        metavar='PATH',
        help="images, videos, folders of them, patterns in quotes ('photos/**/*.jpg'), addresses of http, https or "
        'rtsp, or numbers of cameras',
    )
    parser.add_argument('--config', help='of a checkpoint, a path or a name (default: the one inside it)')
    parser.add_argument(
        '--out', default='outputs/predict', metavar='DIR', help='what is written goes there (default: %(default)s)'
    )
    parser.add_argument(
        '--conf',
        type=float,
        metavar='SCORE',
        help='leave out detections below it (default: the one in the file, or 0.3)',
    )
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='images at once (default: %(default)s)')
    parser.add_argument(
        '--every', type=int, default=1, metavar='N', help='look at each N-th frame of videos and cameras'
    )
    parser.add_argument('--most', type=int, metavar='N', help='stop after N pictures and frames')
    parser.add_argument(
        '--coco',
        metavar='ANNOTATIONS',
        help="write results.bbox.json in COCO's format as well, with the ids of images and categories in this file",
    )
    parser.add_argument(
        '--format',
        nargs='+',
        choices=FORMATS,
        default=['json'],
        help='json: a file for each picture or video; csv: results.csv, a line for each detection; coco: '
        'predictions.json, a data set in COCO format with scores (default: json)',
    )
    parser.add_argument(
        '--slice',
        type=int,
        metavar='PX',
        help='look at tiles with sides of PX, and at the whole image: for large images with small objects. Begin with '
        'the size of the images that the detector learnt from',
    )
    parser.add_argument(
        '--overlap', type=float, default=0.2, metavar='SHARE', help='of a tile in the next one (default: %(default)s)'
    )
    parser.add_argument('--tiles-only', action='store_true', help='do not look at the whole image')
    parser.add_argument('--no-pictures', action='store_true', help='write no annotated pictures and videos')
    parser.add_argument('--device', help='of a checkpoint: cpu, cuda, ... (default: a GPU if there is one)')
    add_optimize(parser, 'of a checkpoint: make the model faster, computing')
    parser.add_argument(
        '--threads', type=int, metavar='N', help='of the processor, for an exported file (default: all)'
    )
    args = parser.parse_args(argv)
    for name in ('batch_size', 'every', 'most', 'threads'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")}: must be at least 1, got {getattr(args, name)}')
    parser.check_score('--conf', args.conf)
    if not 0 <= args.overlap < 0.9:
        parser.error(f'--overlap: must be a number from 0 to below 0.9, got {args.overlap:g}')
    args.source = [int(word) if word.isdecimal() and not Path(word).exists() else word for word in args.source]
    return args


def main(argv=None):
    args = parse_args(argv)
    from mmdet_ddetr.apis.configs import ConfigError
    from mmdet_ddetr.apis.detect_files import Files, detect_files, open_detector
    from mmdet_ddetr.apis.slicing import Sliced

    try:
        with naming('--config', ConfigError):
            detector = open_detector(args.weights, args.config, args.device, args.threads, args.optimize)
    except ImportError as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    if args.slice is not None:
        detector = Sliced(detector, args.slice, args.overlap, max(args.batch_size, 8), not args.tiles_only)
    options = dict(threshold=args.conf, batch_size=args.batch_size, most=args.most, shown=sys.stderr.isatty())
    with naming('--out', OSError):
        draw = not args.no_pictures
        files = Files(args.out, detector.classes, args.source, args.every, args.coco, draw, args.format)
        failures = detect_files(detector, args.source, files, **options)
    if files.number:
        print(f'wrote {args.out}')
    if failures:
        sys.exit(f'{Path(sys.argv[0]).name}: {failures} of the inputs could not be used, see above')


if __name__ == '__main__':
    run(main, ValueError, OSError)
