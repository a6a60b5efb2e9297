"""How much an image's results depend on the other images of its batch, whose size it is padded to.

    python benchmarks/padding.py --weights work_dirs/demo/best_*.pth --images data/shapes/images/val
    python benchmarks/padding.py --config deformable-detr-refine-twostage_r50_16xb2-50e_coco --images val2017 --count 8

Images are cropped to sizes drawn at random, so that a batch holds unlike ones, and go through the detector alone and in
batches. Compared are the neck's maps, the encoder's memory, and what is found; of two figures, the first is the mean
over images or detections and the second the largest.
"""

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.datasets import read_image

SETTINGS = {
    'official code': dict(proposals_on_padding=True, own_maps=False),
    'default: no proposals on padding': dict(proposals_on_padding=False, own_maps=False),
    'own_maps=True, too': dict(proposals_on_padding=False, own_maps=True),
}
SCORE = 0.3  # detections above it, of the image alone, are compared


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--config', help='name or path; default: the one in the checkpoint')
    parser.add_argument('--weights', help='checkpoint; default: random weights')
    parser.add_argument('--images', required=True, help='folder of images')
    parser.add_argument('--count', type=int, default=64, help='images (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=4, help='images in a batch (default: %(default)s)')
    parser.add_argument('--divisor', type=int, help="pad to multiples of it (default: the config's pad_size_divisor)")
    return parser.parse_args()


def cropped(folder, count):
    """Images [h, w, 3] of sizes between half and all of their files'."""
    rng = np.random.default_rng(0)
    for path in sorted(Path(folder).iterdir())[:count]:
        image = read_image(path)
        h, w = (int(rng.integers(side // 2, side + 1)) for side in image.shape[:2])
        yield np.ascontiguousarray(image[:h, :w])


class Watch:
    """Keeps the neck's maps, the memory and the cells that queries start from, of the last forward pass."""

    def __init__(self, model):
        self.maps, self.memory, self.start, self.mask = None, None, None, None
        forward_encoder, pre_transformer, topk = model.forward_encoder, model.pre_transformer, torch.Tensor.topk

        def watched_maps(maps, samples=None):
            self.maps = maps
            return pre_transformer(maps, samples)

        def watched_encoder(**kwargs):
            outputs = forward_encoder(**kwargs)
            self.memory, self.mask, self.start = outputs['memory'], outputs['memory_mask'], None
            return outputs

        def watched_topk(scores, k, *args, **kwargs):
            result = topk(scores, k, *args, **kwargs)
            if self.start is None and scores.dim() == 2 and scores.shape == self.memory.shape[:2]:
                self.start = result[1]
            return result

        model.forward_encoder, model.pre_transformer, torch.Tensor.topk = watched_encoder, watched_maps, watched_topk

    def levels(self, i):
        """Maps [C, H, W] and memory [C, H, W] of image i, per level."""
        sizes = [level[0, 0].numel() for level in self.maps]
        memory = [m.T.unflatten(1, level.shape[-2:]) for m, level in zip(self.memory[i].split(sizes), self.maps)]
        return [level[i] for level in self.maps], memory

    def on_padding(self, i):
        """Share of the queries of image i that start on padding."""
        if self.mask is None or self.start is None:
            return 0.0
        return self.mask[i, self.start[i]].float().mean().item()


def run(inferencer, watch, images, batch_size):
    """Per image: its maps, its memory, its share of queries on padding, its detections."""
    results = []
    for start in range(0, len(images), batch_size):
        chunk = [inferencer.pipeline(dict(img=image)) for image in images[start : start + batch_size]]
        batch = inferencer.collate_fn(chunk)
        samples = inferencer.forward(batch)
        for i, sample in enumerate(samples):
            results.append((*watch.levels(i), watch.on_padding(i), sample.pred_instances))
    return results


def relative_difference(own, batched):
    """Norm of the difference of two lists of maps [C, H, W] over the norm of the first, where the first have cells."""
    difference = total = 0.0
    for a, b in zip(own, batched):
        h, w = (min(sides) for sides in zip(a.shape[1:], b.shape[1:]))
        difference += (a[:, :h, :w] - b[:, :h, :w]).square().sum().item()
        total += a.square().sum().item()
    return (difference / total) ** 0.5


def moved(own, batched):
    """(change of score, px that the box moves by) of each detection above SCORE, to the nearest of its class."""
    changes = []
    for score, label, box in zip(own.scores, own.labels, own.bboxes):
        if score < SCORE:
            break
        distance = (batched.bboxes - box).abs().amax(1) + 1e6 * (batched.labels != label)
        nearest = distance.argmin()
        changes.append((abs(score - batched.scores[nearest]).item(), distance[nearest].item()))
    return changes


def main():
    args = parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    config = args.config and get_config(args.config)
    if config and not args.weights:
        config.model.backbone.init_cfg = None
    inferencer = DDetrInferencer(config or None, args.weights, device='cpu', show_progress=False)
    if not args.weights:
        inferencer.model.init_weights()
    if args.divisor:
        inferencer.model.data_preprocessor.pad_size_divisor = args.divisor
    watch, model = Watch(inferencer.model), inferencer.model
    images = list(cropped(args.images, args.count))
    print(f'{len(images)} images of unlike sizes, alone and in batches of {args.batch_size}')
    print('| | maps of the neck | memory | queries on padding | detections | score changes by | box moves by |')
    print('|--|--|--|--|--|--|--|')
    for name, setting in SETTINGS.items():
        for key, value in setting.items():
            setattr(model, key, value)
        alone, batched = (run(inferencer, watch, images, size) for size in (1, args.batch_size))
        pairs = list(zip(alone, batched))
        maps, memory = (np.mean([relative_difference(a[k], b[k]) for a, b in pairs]) for k in (0, 1))
        shares = [b[2] for b in batched]
        changes = np.array([change for a, b in pairs for change in moved(a[3], b[3])]).reshape(-1, 2)
        row = [name, f'{maps:.1%}', f'{memory:.1%}', f'{np.mean(shares):.0%}, {max(shares):.0%}', str(len(changes))]
        if len(changes):
            mean, most = changes.mean(0), changes.max(0)
            row += [f'{mean[0]:.3f}, {most[0]:.2f}', f'{mean[1]:.1f} px, {most[1]:.1f} px']
        else:
            row += ['', '']
        print(f'| {" | ".join(row)} |', flush=True)


if __name__ == '__main__':
    main()
