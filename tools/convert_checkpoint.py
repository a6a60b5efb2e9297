"""Convert a checkpoint of a DETR between code bases.

python tools/convert_checkpoint.py r50_deformable_detr-checkpoint.pth converted.pth
"""

import sys
from pathlib import Path

from _cli import Parser, run

TARGETS = ('mmdet_ddetr', 'official', 'huggingface', 'mmdet', 'detrex')
LAYOUTS = ('mmdet_ddetr', 'mmdet', 'mmdet2', 'official', 'huggingface', 'detrex')


def parse_args():
    parser = Parser(
        description='Convert a checkpoint of a DETR between code bases',
        epilog='See docs/checkpoints.md',
    )
    parser.add_argument(
        'source', help='file, folder with the files of a model on the Hugging Face hub, or hf://owner/name[@revision]'
    )
    parser.add_argument('target', type=Path, help='file to write, or with --to huggingface a folder')
    parser.add_argument(
        '--to', choices=TARGETS, default='mmdet_ddetr', help='layout of the target (default: %(default)s)'
    )
    parser.add_argument('--from', dest='layout', choices=LAYOUTS, help='layout of the source (default: detected)')
    parser.add_argument(
        '--classes',
        choices=('auto', 'coco', 'keep'),
        default='auto',
        help='coco: map between 91 category ids and 80 classes; keep: leave the rows; auto: coco where it applies '
        '(default: %(default)s)',
    )
    parser.add_argument('--verbose', action='store_true', help='list every key, not patterns of keys')
    return parser.parse_args()


def main():
    args = parse_args()
    if args.to == 'huggingface' and args.target.is_file():
        sys.exit(f'{Path(sys.argv[0]).name}: {args.target} is a file, expected a folder to write')
    if args.to != 'huggingface' and args.target.is_dir():
        sys.exit(f'{Path(sys.argv[0]).name}: {args.target} is a folder, expected a file to write')

    from mmdet_ddetr.checkpoints import ConversionReport, convert, describe, load_checkpoint
    from mmdet_ddetr.checkpoints.files import write

    report = ConversionReport()
    checkpoint = load_checkpoint(args.source, layout=args.layout, target=args.to, classes=args.classes, report=report)
    write(checkpoint, args.target, args.to)
    print(describe(convert(checkpoint['state_dict'], args.to, classes='keep')))
    print(report.every_key() if args.verbose else report)
    classes = checkpoint['meta'].get('dataset_meta', {}).get('classes')
    print(f'classes: {", ".join(classes)}' if classes else 'classes: not known')
    print(f'wrote {args.target}')


if __name__ == '__main__':
    run(main)
