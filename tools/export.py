"""Write a detector to a file that runs without OpenMMLab.

python tools/export.py CONFIG CHECKPOINT detector.onnx
"""

import os
import sys
from pathlib import Path

from _cli import Parser, positive, read_config, run, writable_folder

ENDINGS = dict(onnx='.onnx', openvino='.xml', pt2='.pt2', aoti='.pt2')
FORMATS = {ending: name for name, ending in ENDINGS.items() if name != 'aoti'}  # of each ending, the usual one
ATTENTION = ('gridsample', 'gather', 'plugin', 'op')


def parse_args():
    parser = Parser(
        description='Write a detector to a file that runs without OpenMMLab',
        epilog='The file takes batches of any size and padded images, gives boxes, scores and labels without NMS, and '
        'names its classes: see docs/export.md. tools/predict.py runs it.',
    )
    parser.add_argument('config', help='path of a config, or the name of one of this package')
    parser.add_argument('checkpoint', help='weights, of any layout in docs/checkpoints.md')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument(
        '--format',
        choices=ENDINGS,
        help='default: by the ending of OUT: .onnx, .xml (openvino) or .pt2 (torch.export); aoti writes a .pt2 '
        'compiled for this processor',
    )
    parser.add_argument(
        '--attention',
        choices=ATTENTION,
        help='how to compute deformable attention: with GridSample (default), with Gather alone, as a node of '
        "TensorRT's plugin (onnx), or with the op of mmdet_ddetr, which has to be imported then (pt2, aoti)",
    )
    parser.add_argument(
        '--threshold', type=float, default=0.3, metavar='SCORE', help='the usual one of the file (default: %(default)s)'
    )
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help='fix it (default: any)')
    parser.add_argument('--batch', type=positive(int), metavar='IMAGES', help='fix the number of images (default: any)')
    parser.add_argument('--device', default='cpu', help='that an aoti file is for (default: %(default)s)')
    args = parser.parse_args()
    parser.check_score('--threshold', args.threshold)
    ending = args.out.suffix.lower()
    args.format = args.format or FORMATS.get(ending)
    if args.format is None:
        parser.error(f'out: {args.out} ends in none of {", ".join(FORMATS)}')
    if ending != ENDINGS[args.format]:
        parser.error(f'out: {args.out} must end in {ENDINGS[args.format]} for --format {args.format}')
    if not args.out.resolve().parent.is_dir():
        parser.error(f'out: no folder {args.out.resolve().parent}')
    if args.out.is_dir():
        parser.error(f'out: {args.out} is a folder, expected a file to write')
    for written in [args.out] + [args.out.with_suffix('.bin')] * (args.format == 'openvino'):
        for name in ('config', 'checkpoint'):
            given = getattr(args, name)
            if os.path.exists(given) and written.exists() and os.path.samefile(given, written):
                parser.error(f'out: {written} is the {name}, which would be overwritten')
    return args


def main():
    args = parse_args()
    from mmdet_ddetr.apis import DDetrInferencer
    from mmdet_ddetr.export import ExportError, check_format, export

    writable_folder('out', args.out.parent)
    try:
        check_format(args.format, args.attention)
        loaded = DDetrInferencer(read_config(args.config), args.checkpoint, device=args.device, show_progress=False)
        if differences := loaded.differences():
            print(f"the config counts where the checkpoint's own differs: {'; '.join(differences)}", flush=True)
        classes = loaded.model.dataset_meta['classes']
        options = dict(attention=args.attention, threshold=args.threshold, batch=args.batch)
        options['size'] = args.size and tuple(args.size)
        print(f'exporting {args.checkpoint} to {args.out}: it takes from half a minute to some minutes', flush=True)
        export(loaded.model, loaded.cfg, args.out, args.format, classes=classes, **options)
    except (ExportError, ImportError, NotImplementedError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    print(f'wrote {args.out}: {len(classes)} classes, {args.out.stat().st_size / 1e6:.0f} MB')


if __name__ == '__main__':
    run(main, ValueError, OSError)
