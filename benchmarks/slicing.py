"""What tiles are worth in large images with small objects: recall, AP and time beside those of the whole image.

    python benchmarks/slicing.py work_dirs/demo/best_*.pth

Scenes are drawn by the code of tools/make_shapes.py, with more shapes than its images have. All detections count, not
only the best hundred of an image.
"""

import argparse
import contextlib
import io
import sys
import time
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet_ddetr.apis.detect_files import open_detector
from mmdet_ddetr.apis.slicing import Sliced

sys.path.append(str(Path(__file__).parents[1] / 'tools'))
import make_shapes

MOST = 1000  # detections of a scene that count


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('detector', help='checkpoint of `make demo`, or its exported file')
    parser.add_argument('--size', type=int, default=4000, help='px of a scene (default: %(default)s)')
    parser.add_argument('--scenes', type=int, default=4, help='(default: %(default)s)')
    parser.add_argument('--seed', type=int, default=9, help='of the scenes (default: %(default)s)')
    parser.add_argument('--shapes', type=int, default=200, help='in a scene (default: %(default)s)')
    parser.add_argument('--sides', type=int, nargs='+', default=[640, 384, 256], help='of tiles (default: %(default)s)')
    parser.add_argument('--overlap', type=float, nargs='+', default=[0.2], help='(default: %(default)s)')
    return parser.parse_args()


def draw(seed, index, size, shapes):
    """A scene and its boxes [(label, [x, y, w, h])], of the three sizes of COCO alike."""

    def sides(rng, _):
        groups = rng.choice(('small', 'medium', 'large'), shapes, p=(0.4, 0.4, 0.2))
        return sorted((np.exp(rng.uniform(*np.log(make_shapes.SIDES[group]))) for group in groups), reverse=True)

    make_shapes.MAX_BOXES, make_shapes.choose_sides = shapes, sides
    return make_shapes.draw_image(np.random.default_rng((seed, index)), size)


def truth_of(scenes):
    images = [dict(id=i, width=image.shape[1], height=image.shape[0]) for i, (image, _) in enumerate(scenes)]
    boxes = [(i, *box) for i, (_, boxes) in enumerate(scenes) for box in boxes]
    coco = COCO()
    coco.dataset = dict(
        images=images,
        categories=[dict(id=i, name=name) for i, name in enumerate(make_shapes.CLASSES)],
        annotations=[
            dict(id=n, image_id=i, category_id=label, bbox=box, area=box[2] * box[3], iscrowd=0)
            for n, (i, label, box) in enumerate(boxes, 1)
        ],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def evaluate(coco, found):
    """AP, of small, medium and large objects; AP at an IoU of 0.5, and the recall at it."""
    results = [
        dict(image_id=i, category_id=int(label), bbox=[x1, y1, x2 - x1, y2 - y1], score=float(score))
        for i, detections in enumerate(found)
        for (x1, y1, x2, y2), score, label in zip(detections.boxes.tolist(), detections.scores, detections.labels)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = (evaluation.eval[name][..., 0] for name in ('precision', 'recall'))  # one limit of detections

    def mean(values):
        return values[values > -1].mean()

    areas = [mean(precision[..., area]) for area in range(4)]
    return [*areas, mean(precision[0, ..., 0]), mean(recall[0, ..., 0])]


def main():
    args = parse_args()
    detector = open_detector(args.detector)
    scenes = [draw(args.seed, i, args.size, args.shapes) for i in range(args.scenes)]
    coco = truth_of(scenes)
    ways = {'whole image': detector}
    for side in args.sides:
        for overlap in args.overlap:
            ways[f'tiles of {side}, overlap {overlap:g}'] = Sliced(detector, side, overlap)
    print(f'{args.scenes} scenes of {args.size} px, {len(coco.dataset["annotations"])} shapes')
    print('| | AP | small | medium | large | AP50 | recall | s an image |\n|--|--|--|--|--|--|--|--|')
    for name, way in ways.items():
        start = time.perf_counter()
        found = [way([image], 0.01)[0] for image, _ in scenes]
        seconds = (time.perf_counter() - start) / len(scenes)
        figures = ' | '.join(f'{value:.3f}' for value in evaluate(coco, found))
        print(f'| {name} | {figures} | {seconds:.1f} |', flush=True)


if __name__ == '__main__':
    main()
