"""Time of an evaluation by COCO's metric: faster-coco-eval beside pycocotools.

    pip install faster-coco-eval
    OMP_WAIT_POLICY=passive python benchmarks/coco_eval.py

Drawn boxes, about as many and as large as COCO's; detections lie near them or anywhere. Both take turns; their figures
must be equal.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _measure import machine, table
from mmengine.logging import MMLogger

from mmdet_ddetr.evaluation import CocoMetric
from mmdet_ddetr.evaluation.backends import BACKENDS, coco_metric, evaluated_by

CLASSES, OBJECTS, SIZE = 80, 7, (480, 640)
NAMES = tuple(f'class {i}' for i in range(CLASSES))


def draw(rng, count: int) -> np.ndarray:  # [count, 4] (x, y, w, h)
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * np.clip(SIZE[::-1] - sides, 0, None), sides], 1)


def make(images: int, detections: int, folder: Path) -> tuple[Path, list[dict]]:
    """The annotation file, and data samples as the metric's ``process`` takes them."""
    rng, annotations, samples = np.random.default_rng(0), [], []
    for image in range(images):
        boxes, labels = draw(rng, OBJECTS), rng.integers(CLASSES, size=OBJECTS)
        annotations += [
            dict(
                id=len(annotations) + 1 + i,
                image_id=image,
                category_id=int(label) + 1,
                bbox=box.tolist(),
                area=float(box[2] * box[3]),
                iscrowd=0,
            )
            for i, (box, label) in enumerate(zip(boxes, labels))
        ]
        near = np.tile(boxes, (3, 1))[:detections]
        near = near + rng.normal(0, 0.08, near.shape) * near[:, [2, 3, 2, 3]]
        found = np.concatenate([near, draw(rng, detections - len(near))])
        found_labels = np.concatenate([np.tile(labels, 3)[:detections], rng.integers(CLASSES, size=detections)])
        scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(1, 6, detections - len(near))])
        found[:, 2:] = found[:, :2] + np.abs(found[:, 2:])
        instances = dict(bboxes=found, scores=scores, labels=found_labels[:detections])
        instances = {name: torch.from_numpy(value) for name, value in instances.items()}
        samples.append(dict(img_id=image, ori_shape=SIZE, pred_instances=instances))
    path = folder / 'annotations.json'
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(NAMES)]
    files = [dict(id=i, file_name=f'{i}.jpg', height=SIZE[0], width=SIZE[1]) for i in range(images)]
    path.write_text(json.dumps(dict(images=files, annotations=annotations, categories=categories)))
    return path, samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=5000, help='default: %(default)s')
    parser.add_argument('--detections', type=int, default=100, help='an image (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=3, help='of each (default: %(default)s); the least time counts')
    parser.add_argument('--processor-time', action='store_true', help='on a machine that has other work, too')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'), help='for coco_eval.md')
    args = parser.parse_args()
    clock = time.process_time if args.processor_time else time.perf_counter
    MMLogger.get_current_instance().setLevel('WARNING')
    with tempfile.TemporaryDirectory() as folder:
        path, samples = make(args.images, args.detections, Path(folder))
        print(f'{args.images} images, {args.images * args.detections} detections', file=sys.stderr)
        prefix, figures = f'{folder}/found', {}
        metrics = {b: CocoMetric(str(path), outfile_prefix=prefix, backend=b) for b in BACKENDS}
        for metric in metrics.values():
            metric.dataset_meta = dict(classes=NAMES)
            for sample in samples:
                metric.process({}, [sample])

        def whole(backend):
            figures[backend] = metrics[backend].compute_metrics(metrics[backend].results)

        def evaluation(backend):
            with evaluated_by(backend):
                computed = coco_metric.COCOeval(truth, found, 'bbox')
            for step in (computed.evaluate, computed.accumulate, computed.summarize):
                step()

        rows = []
        for name, step in (('the metric with its files', whole), ('the evaluation alone', evaluation)):
            if step is evaluation:
                truth = coco_metric.COCO(str(path))
                found = truth.loadRes(f'{prefix}.bbox.json')
            taken = {backend: [] for backend in BACKENDS}
            for backend in BACKENDS * args.repeats:
                start = clock()
                step(backend)
                taken[backend].append(clock() - start)
            slow, fast = (min(taken[backend]) for backend in BACKENDS)
            rows.append([name, f'{slow:.1f}', f'{fast:.1f}', f'{slow / fast:.1f}'])
        assert figures[BACKENDS[0]] == figures[BACKENDS[1]] and figures[BACKENDS[0]]['bbox_mAP'] > 0.01, figures
    text = f'{machine("cpu")}\n\n{table(["", "pycocotools, s", "faster-coco-eval, s", "ratio"], rows)}\n'
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'coco_eval.md').write_text(text)
    print(text)


if __name__ == '__main__':
    main()
