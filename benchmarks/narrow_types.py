"""How far predictions in bf16 or fp16 are from those in fp32, of a model from optimize_for_inference.

    python benchmarks/narrow_types.py --weights work_dirs/demo/best_*.pth --images data/shapes/images/val
    python benchmarks/narrow_types.py --config deformable-detr_r50_16xb2-50e_coco --images val2017 --count 20

Of two figures, the first is the mean and the second the largest. Compared are detections above 0.3 with those of the
same label and a box of IoU 0.5 or more; and, where queries are learned, the scores and boxes of all queries, which
random weights have, too.
"""

import argparse
from pathlib import Path

import torch
from _measure import machine
from torch import Tensor

from mmdet_ddetr import get_config, optimize_for_inference
from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.datasets import read_image
from mmdet_ddetr.testing import randomise, without_download

from mmdet.structures.bbox import bbox_overlaps  # after ours, which stands in for a compiled mmcv  # isort: skip

SCORE, IOU = 0.3, 0.5


class Queries:
    """Keeps scores [B, Q, classes] and boxes [B, Q, 4] in pixels of all queries of the last prediction."""

    def __init__(self, model: torch.nn.Module):
        self.best = model.bbox_head.best
        model.bbox_head.best = self

    def __call__(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        self.scores, self.boxes = logits.float().sigmoid(), boxes.float() * sizes[:, None]
        return self.best(logits, boxes, sizes)


def figures(values: list[Tensor], unit: str = '') -> str:
    values = torch.cat([value.flatten() for value in values])
    return f'{values.mean():.2g}{unit}, {values.max():.2g}{unit}' if len(values) else 'none'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', help='name or path; default: the one in the checkpoint')
    parser.add_argument('--weights', help='checkpoint; default: random weights')
    parser.add_argument('--images', required=True, type=Path, help='folder of images')
    parser.add_argument('--count', type=int, default=64, help='images (default: %(default)s)')
    parser.add_argument('--dtype', default='bfloat16', choices=['bfloat16', 'float16'])
    args = parser.parse_args()
    torch.manual_seed(0)
    config = args.config
    if args.weights is None:
        config = get_config(config)
        without_download(config.model)
    inferencer = DDetrInferencer(config, args.weights, device='cpu', show_progress=False)
    model = inferencer.model
    if args.weights is None:
        model.init_weights()
        randomise(model)  # at first, boxes do not depend on what is seen
    models = [optimize_for_inference(model, dtype) for dtype in (torch.float32, getattr(torch, args.dtype))]
    watched = [Queries(model) for model in models]
    scores, boxes, sides, changes, total = [], [], [], [], 0
    for path in sorted(args.images.iterdir())[: args.count]:
        image, found = read_image(path), []
        for optimised in models:
            inferencer.model = optimised
            (detections,) = inferencer.detect([image])
            found.append([torch.as_tensor(x) for x in (detections.boxes, detections.scores, detections.labels)])
        exact, narrow = watched
        if not model.as_two_stage:
            changes.append((narrow.scores - exact.scores).abs())
            boxes.append((narrow.boxes - exact.boxes).abs())
        (exact_boxes, exact_scores, exact_labels), (narrow_boxes, narrow_scores, narrow_labels) = found
        overlaps = bbox_overlaps(exact_boxes, narrow_boxes).masked_fill(exact_labels[:, None] != narrow_labels, -1)
        sure = exact_scores > SCORE
        iou, like = overlaps[sure].max(1)
        like, total = like[iou >= IOU], total + len(iou)
        scores.append((narrow_scores[like] - exact_scores[sure][iou >= IOU]).abs())
        sides.append((narrow_boxes[like] - exact_boxes[sure][iou >= IOU]).abs())
    print(f'{machine("cpu")}, {args.dtype}\n')
    print(f'{total} detections above {SCORE}, of which {sum(map(len, scores))} are found again')
    print(f'their scores: {figures(scores)}; sides of their boxes: {figures(sides, " px")}')
    if changes:
        print(f'scores of all queries: {figures(changes)}; sides of their boxes: {figures(boxes, " px of the input")}')


if __name__ == '__main__':
    main()
