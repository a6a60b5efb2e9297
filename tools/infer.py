"""Detect with a file that tools/export.py wrote.

python tools/infer.py detector.onnx photos --out outputs/infer
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

from _cli import run


def parse_args():
    parser = argparse.ArgumentParser(description='Detect with a file that tools/export.py wrote')
    parser.add_argument('detector', help='.onnx, .xml of OpenVINO, or .pt2 of torch.export or AOTInductor')
    parser.add_argument('images', nargs='+', help='image files, folders of images or URLs')
    parser.add_argument(
        '--out', type=Path, default='outputs/infer', metavar='DIR', help='for pictures and JSON (default: %(default)s)'
    )
    parser.add_argument(
        '--threshold', type=float, metavar='SCORE', help='leave out detections below it (default: the one in the file)'
    )
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='images at once (default: %(default)s)')
    parser.add_argument('--threads', type=int, metavar='N', help='of the processor (default: all)')
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f'--batch-size: must be at least 1, got {args.batch_size}')
    return args


def main():
    args = parse_args()
    import json

    import cv2

    from mmdet_ddetr.apis.inputs import pictures
    from mmdet_ddetr.apis.outputs import Names
    from mmdet_ddetr.apis.pictures import draw_boxes, palette
    from mmdet_ddetr.export import ExportedDetector, ExportError

    try:
        detector = ExportedDetector(args.detector, args.threads)
    except (ExportError, ImportError, FileNotFoundError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    threshold = detector.description.threshold if args.threshold is None else args.threshold
    colours, names, read_all = palette(len(detector.classes)), Names(), True
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        inputs = pictures(args.images)
        while batch := list(islice(inputs, args.batch_size)):
            images = []
            for picture in batch:
                try:
                    images.append((picture.path, picture.read()))
                except (FileNotFoundError, ValueError) as error:
                    print(error, file=sys.stderr)
                    read_all = False
            found = detector([image for _, image in images], threshold) if images else []
            for (path, image), detections in zip(images, found):
                boxes, scores, labels = (x.tolist() for x in (detections.boxes, detections.scores, detections.labels))
                objects = [
                    dict(label=detector.classes[label], score=round(score, 4), box=[round(x, 2) for x in box])
                    for box, score, label in zip(boxes, scores, labels)
                ]
                name = args.out / names.of(path, args.out)
                name.with_name(f'{name.name}.json').write_text(json.dumps(dict(image=path, objects=objects), indent=1))
                drawn = draw_boxes(image, boxes, labels, detector.classes, colours, scores)
                cv2.imwrite(f'{name}.jpg', drawn)
                print(f'{path}: {", ".join(o["label"] for o in objects) or "nothing"}')
    except (ExportError, TypeError, ValueError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    print(f'wrote {args.out}')
    sys.exit(0 if read_all else 1)


if __name__ == '__main__':
    run(main)
