"""Draw what a detector looks at, as PNG files and an interactive page: figure 6 of Deformable DETR, the points of
deformable convolutions and of DAT, the bins of deformable RoI pooling.

python tools/explain.py deformable-detr_r50_16xb2-50e_coco epoch_50.pth photo.jpg --out outputs/explain
"""

from pathlib import Path

from _cli import Parser, run, writable_folder


def parse_args(argv=None):
    parser = Parser(description='Draw what a detector looks at, as PNG files and one HTML page')
    parser.add_argument('config', help='path of a config, or the name of one of this package')
    parser.add_argument('weights', help='checkpoint file')
    parser.add_argument('image', help='image file')
    parser.add_argument(
        '--out', default='outputs/explain', metavar='DIR', help='folder for the files (default: %(default)s)'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, metavar='S', help='leave out detections below it (default: %(default)s)'
    )
    parser.add_argument(
        '--detections',
        type=int,
        default=4,
        metavar='N',
        help='draw the N best objects as PNG (default: %(default)s); the page has all',
    )
    parser.add_argument(
        '--layer',
        type=int,
        metavar='N',
        help='layer of figure 6 and of --grid, in encoder and decoder, 1 the first (default: the last)',
    )
    parser.add_argument(
        '--pixel',
        type=float,
        nargs=2,
        action='append',
        default=[],
        metavar=('X', 'Y'),
        help='also draw what encoder and backbone look at from this pixel of the image; may be given several times',
    )
    parser.add_argument(
        '--level',
        type=int,
        default=1,
        metavar='N',
        help='feature level of --pixel, 1 the finest (default: %(default)s)',
    )
    parser.add_argument(
        '--depth',
        type=int,
        default=3,
        metavar='N',
        help='deformable convolutions that points are followed through (default: %(default)s)',
    )
    parser.add_argument('--grid', action='store_true', help='also draw every level and head apart')
    parser.add_argument(
        '--page-mb',
        type=float,
        default=2,
        metavar='MB',
        help="room in the page for the encoder's pixels, and as much for the backbone's; where they take more, it "
        'holds every n-th of them (default: %(default)s)',
    )
    parser.add_argument('--device', help='cpu, cuda, ... (default: a GPU if there is one)')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    run(lambda: write(args), OSError, TypeError, ValueError)


def write(args):
    """Predict, and write the figures and the page."""
    from mmdet_ddetr.apis import DDetrInferencer
    from mmdet_ddetr.explain import check_recordable, explain
    from mmdet_ddetr.explain.page import write_page

    if args.depth < 1:
        raise ValueError(f'--depth must be at least 1, got {args.depth}')
    model = DDetrInferencer(args.config, args.weights, device=args.device, show_progress=False).model
    check_recordable(model)  # of another kind: say so before anything is predicted
    out, stem = writable_folder('--out', args.out), Path(args.image).stem
    explanation = explain(model, args.image, 0.0)
    found = [detection for detection in explanation.detections if detection.score >= args.score_thr]
    if not found:
        best = max(explanation.detections, key=lambda detection: detection.score, default=None)
        raise ValueError(
            f'no detection in {args.image} with a score of --score-thr {args.score_thr:g} or more'
            + (f'; the best is {best.name} with {best.score:.3f}' if best else '')
        )
    explanation.detections[:] = found
    recording = explanation.recording
    if args.pixel and not (recording.encoder or recording.convolutions or recording.deformed):
        raise ValueError('--pixel must not be given: no attention or convolution that is drawn starts from pixels here')
    objects = explanation.objects(args.detections)
    figures = {}
    if explanation.has_queries:
        figures |= of_queries(args, explanation, objects)
    figures |= of_sampling(args, explanation, objects)

    for name, figure in figures.items():
        path = out / f'{stem}-{name}.png'
        figure.savefig(path)
        print(path)
    subtitle = f'{Path(args.config).stem} · {Path(args.weights).name} · scores of {args.score_thr:g} and above'
    print(
        write_page(
            explanation,
            out / f'{stem}.html',
            f'What the detector looks at in {Path(args.image).name}',
            subtitle,
            args.page_mb,
            args.depth,
        )
    )


def of_queries(args, explanation, objects):
    """Figures {name: figure} of a DETR's attention."""
    from mmdet_ddetr.explain.figures import decoder_figure, encoder_figure, figure6, gaussian_figure, grid_figure

    counts = [count for count in explanation.num_layers.values() if count]
    level = _index('--level', args.level, len(explanation.recording.spatial_shapes))
    layer = -1 if args.layer is None else _index('--layer', args.layer, min(counts))
    figures = {'figure6': figure6(explanation, objects, layer)}
    for i, detection in enumerate(objects, 1):
        name = f'{i}-{"".join(c if c.isalnum() else "-" for c in detection.name)}'
        figures[f'decoder-{name}'] = decoder_figure(explanation, detection)
        if explanation.has_gaussians:
            figures[f'gaussians-{name}'] = gaussian_figure(explanation, detection)
        if args.grid:
            grid = explanation, 'decoder', layer, detection.query, detection
            figures[f'grid-{name}'] = grid_figure(*grid)
            if explanation.has_gaussians:
                figures[f'grid-gaussians-{name}'] = grid_figure(*grid, close_up=False, gaussians=True)
    for x, y in args.pixel if explanation.recording.encoder else ():
        figures[f'encoder-{x:g}-{y:g}'] = encoder_figure(explanation, x, y, level)
        if args.grid:
            query = explanation.encoder_query(x, y, level)
            figures[f'grid-{x:g}-{y:g}'] = grid_figure(explanation, 'encoder', layer, query, pixel=(x, y))
    return figures


def of_sampling(args, explanation, objects):
    """Figures {name: figure} of deformable convolutions, of DAT and of deformable RoI pooling."""
    from mmdet_ddetr.explain import backbone_figures as draw
    from mmdet_ddetr.explain.roi_figures import bins_figure, bins_of

    figures = {}
    if explanation.recording.convolutions:
        figures['convolution'] = draw.convolution_figure(explanation, objects, args.depth)
        for x, y in args.pixel:
            figures[f'convolution-{x:g}-{y:g}'] = draw.convolution_depth_figure(explanation, x, y, args.depth)
    if explanation.recording.deformed:
        figures['deformed-points'] = draw.deformed_points_figure(explanation)
        figures['deformed-attention'] = draw.attention_figure(explanation, objects)
        for x, y in args.pixel:
            figures[f'deformed-attention-{x:g}-{y:g}'] = draw.attention_layers_figure(explanation, x, y)
    if explanation.recording.pools and bins_of(explanation, objects[0]):
        figures['bins'] = bins_figure(explanation, objects)
    return figures


def _index(option, number, count):
    if not 1 <= number <= count:
        raise ValueError(f'{option} must be in 1..{count}, got {number}')
    return number - 1


if __name__ == '__main__':
    main()
