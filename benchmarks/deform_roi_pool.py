"""Deformable RoI pooling: time and memory of the op beside plain PyTorch, on the CPU.

    python benchmarks/deform_roi_pool.py        # fp32; two minutes on one core

Peers: F.grid_sample at all samples of all bins and a mean, and the reference, which gathers cells; the second alone
knows offsets of classes. The cases are those of a Faster R-CNN with FPN and of R-FCN on an 800 x 1333 image; backward
gives the gradients of features and offsets. Peers take turns; a figure is the minimum and (median) of several runs.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _measure import machine, milliseconds, peak_memory, table, times
from torch import Tensor

from mmdet_ddetr import ops
from mmdet_ddetr.ops import reference

PASSES = {'forward': False, 'forward + backward': True}
BINS = 7


def rois_of(count: int) -> Tensor:
    """[count, 5], boxes of 40 to 340 pixels in one image; on PyTorch's default device."""
    rng = torch.Generator().manual_seed(0)
    with torch.device('cpu'):
        corners = torch.rand(count, 2, generator=rng) * torch.tensor([950.0, 450.0])
        size = 40 + 300 * torch.rand(count, 2, generator=rng)
        rois = torch.cat((torch.zeros(count, 1), corners, corners + size), 1)
    return rois.to(torch.get_default_device())


def by_grid_sample(input, rois, offset, spatial_scale, ratio, gamma):
    """What a user without the op would write, for one image: a sample outside counts as on the border."""
    (_, C, H, W), R = input.shape, len(rois)
    start, end = (rois[:, 1:] * spatial_scale - 0.5).view(R, 2, 2).unbind(1)
    size = (end - start)[:, :, None, None]  # [R, (x, y), 1, 1]
    first = start[:, :, None, None] + gamma * size * offset  # [R, (x, y), bins, bins]
    number = (torch.arange(BINS * ratio) + 0.5) / (BINS * ratio)
    moved = first.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)
    x, y = moved[:, 0] + number * size[:, 0], moved[:, 1] + number[:, None] * size[:, 1]
    grid = torch.stack((2 * x + 1, 2 * y + 1), -1) / torch.tensor([W, H]) - 1
    samples = F.grid_sample(input, grid.view(1, R * BINS * ratio, -1, 2), padding_mode='border', align_corners=False)
    return samples.view(C, R, BINS, ratio, BINS, ratio).mean((3, 5)).transpose(0, 1)


def plain(ratio: int) -> tuple[list[Tensor], dict[str, Callable]]:
    """512 RoIs of a map of stride 8: 256 channels."""
    rois, scale, gamma = rois_of(512), 1 / 8, 0.1
    peers = {
        'deform_roi_pool': lambda i, o: ops.deform_roi_pool(i, rois, o, BINS, scale, ratio, gamma),
        'grid_sample + mean': lambda i, o: by_grid_sample(i, rois, o, scale, ratio, gamma),
        'reference': lambda i, o: reference.deform_roi_pool(i, rois, o, (BINS, BINS), scale, ratio, gamma),
    }
    if ratio == 0:
        del peers['grid_sample + mean']
    return [torch.randn(1, 256, 100, 167), torch.randn(512, 2, BINS, BINS)], peers


def position_sensitive(output_dim: int, classes: int) -> tuple[list[Tensor], dict[str, Callable]]:
    """128 RoIs of score maps of stride 16, 7 x 7 of them a channel."""
    rois, scale, std = rois_of(128), 1 / 16, 0.1
    size = BINS, BINS
    peers = {
        'deform_ps_roi_pool': lambda i, o: ops.deform_ps_roi_pool(i, rois, o, scale, output_dim, BINS, BINS),
        'reference': lambda i, o: reference.deform_roi_pool(i, rois, o, size, scale, 4, std, BINS, True),
    }
    return [torch.randn(1, output_dim * BINS**2, 50, 84), torch.randn(128, 2 * classes, BINS, BINS)], peers


CASES = {
    'plain, 2 x 2 samples a bin': lambda: plain(2),
    'plain, a sample a cell': lambda: plain(0),
    'position-sensitive, 81 classes with offsets of their own': lambda: position_sensitive(81, 81),
    'position-sensitive, 8 coordinates': lambda: position_sensitive(8, 1),
}


def make_step(case: str, peer: str, backward: bool):
    torch.manual_seed(0)
    tensors, peers = CASES[case]()
    tensors = [tensor.requires_grad_(backward) for tensor in tensors]
    grad_output = torch.randn_like(peers[peer](*tensors)) if backward else None

    def step():
        output = peers[peer](*tensors)
        return torch.autograd.grad(output, tensors, grad_output) if backward else output

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=2, help='how long each peer runs, for each figure')
    args = parser.parse_args()
    print(machine('cpu'))
    for case in CASES:
        peers = list(CASES[case]()[1])
        measured = {
            name: times({peer: make_step(case, peer, backward) for peer in peers}, args.seconds)
            for name, backward in PASSES.items()
        }
        rows = [
            [
                peer,
                *(milliseconds(measured[name][peer]) for name in PASSES),
                *(f'{peak_memory(make_step, case, peer, backward):.0f}' for backward in PASSES.values()),
            ]
            for peer in peers
        ]
        print(f'\n{case}\n')
        print(table(['', *(f'{name}, ms' for name in PASSES), *(f'{name}, MB' for name in PASSES)], rows), flush=True)


if __name__ == '__main__':
    main()
