"""RoIAlign of SAM-DETR: by the attention's operator, as here, beside mmcv's and beside two matrix products.

    OMP_WAIT_POLICY=passive python benchmarks/roi_align.py

300 boxes of an image of 800 x 1333 px in 7 x 7 bins, 256 channels, at strides 32, 16 and 8; forward, and forward and
backward, the peers taking turns. mmcv's is its compiled operator where there is one, else this package's stand-in. The
products are exact as well: a bin's samples form a grid, so that its mean is one over the rows of one over the columns.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from _measure import machine, milliseconds, table, times
from torch import Tensor

import mmdet_ddetr  # noqa: F401  (mmcv.ops needs it where mmcv is not compiled)
from mmdet_ddetr.layers.roi_align import _samples, roi_align

QUERIES, CHANNELS, BINS = 300, 256, 7
SHAPES = {32: (25, 42), 16: (50, 84), 8: (100, 167)}


def by_mmcv(memory: Tensor, shape: tuple[int, int], boxes: Tensor) -> Tensor:
    from mmcv.ops import roi_align as mmcv_roi_align

    corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
    rois = torch.nn.functional.pad(corners[0], (1, 0))
    pooled = mmcv_roi_align(memory.transpose(1, 2).unflatten(2, shape), rois, BINS, 1.0, 0, 'avg', True)
    return pooled.flatten(2).transpose(1, 2)[None]


def by_products(memory: Tensor, shape: tuple[int, int], boxes: Tensor) -> Tensor:
    H, W = shape
    rows, columns = (
        _matrix(*_samples(boxes[..., axis], boxes[..., axis + 2], cells, cells, BINS), cells)
        for axis, cells in ((1, H), (0, W))
    )
    means = columns.flatten(1, 2)[:, None] @ memory.unflatten(1, shape)  # [1, H, Q*BINS, C]
    means = means.view(1, H, QUERIES, -1).transpose(1, 2)
    return (rows @ means).view(1, QUERIES, BINS**2, -1)


def _matrix(place: Tensor, weight: Tensor, cells: int) -> Tensor:  # [1, Q, BINS, samples] each -> [1, Q, BINS, cells]
    """The weight of every cell of an axis in the mean of every bin."""
    place = place - 0.5
    low = place.floor()
    share = place - low
    matrix = place.new_zeros(*place.shape[:-1], cells)
    matrix.scatter_add_(-1, low.long(), (1 - share) * weight)
    return matrix.scatter_add_(-1, (low.long() + 1).clamp(max=cells - 1), share * weight)


PEERS = {"the attention's operator": partial(roi_align, bins=BINS), 'mmcv': by_mmcv, 'two products': by_products}


def boxes_of(kind: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:  # [1, Q, 4], in cells
    """Boxes as training starts with them, half of the image wide, or of objects, a seventh of it in the median."""
    if kind == 'initial':
        boxes = torch.randn(1, QUERIES, 4, generator=generator).sigmoid()
    else:
        sizes = (torch.randn(1, QUERIES, 2, generator=generator) * 0.8 - 2).exp().clamp(0.01, 1)
        boxes = torch.cat([torch.rand(1, QUERIES, 2, generator=generator), sizes], -1)
    return boxes * torch.tensor(shape[::-1]).repeat(2)


def both_ways(function, memory: Tensor, *arguments) -> Tensor:
    output = function(memory, *arguments)
    torch.autograd.grad(output.sum(), memory)
    return output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=3, help='of each peer in each case (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'), help='for roi_align.md')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator, rows = torch.Generator().manual_seed(0), []
    for stride, shape in SHAPES.items():
        for kind in ('initial', 'of objects'):
            boxes = boxes_of(kind, shape, generator)
            memory = torch.randn(1, shape[0] * shape[1], CHANNELS, generator=generator, requires_grad=True)
            exact = by_mmcv(memory.detach().double(), shape, boxes.double())
            for name, step in (('forward', lambda f, *x: f(*x)), ('forward and backward', both_ways)):
                steps = {peer: partial(step, f, memory, shape, boxes) for peer, f in PEERS.items()}
                measured = times(steps, args.seconds)
                errors = {peer: (f(memory.detach(), shape, boxes) - exact).abs().max() for peer, f in PEERS.items()}
                cells = [f'{milliseconds(measured[peer])}, {errors[peer]:.0e}' for peer in PEERS]
                rows.append([str(stride), kind, name, *cells])
                print(*rows[-1], sep=' | ', flush=True)
    result = f'{machine("cpu")}\n\n{table(["stride", "boxes", "", *PEERS], rows)}\n'
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'roi_align.md').write_text(result)
    print(result)


if __name__ == '__main__':
    main()
