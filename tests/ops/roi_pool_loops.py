"""The two kernels that define deformable RoI pooling, statement by statement and a number at a time, in fp64.

``mmcv``: deform_roi_pool_cuda_kernel.cuh. ``official``: deformable_psroi_pooling.cu of MXNet. Each gives the output and
the gradients of input and offset. Where a sample lies outside the map or in its last row or column, mmcv's gradient of
the offset is not the derivative of its output; where a coordinate is a whole number, the official one is 0. The
derivative, towards larger coordinates, stands here.
"""

import itertools
import math

import torch


def _round(x):  # as C does
    return math.copysign(math.floor(abs(x) + 0.5), x)


class _Pooled:
    """Output and gradients, which grow sample by sample."""

    def __init__(self, input, offset, shape, grad_output):
        self.input, self.grad_output = input.tolist(), grad_output.tolist()
        self.H, self.W = input.shape[2:]
        self.output = torch.zeros(shape, dtype=torch.double)
        self.grad_input = torch.zeros_like(input)
        self.grad_offset = torch.zeros_like(offset)

    def bilinear(self, image, c, y, x):
        """Value, derivatives over y and x, and the four cells with their weights; y and x are in the map."""
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, self.H - 1), min(x0 + 1, self.W - 1)
        fy, fx, plane = y - y0, x - x0, self.input[image][c]
        cells = [
            (y0, x0, (1 - fy) * (1 - fx)),
            (y0, x1, (1 - fy) * fx),
            (y1, x0, fy * (1 - fx)),
            (y1, x1, fy * fx),
        ]
        dy = (1 - fx) * (plane[y1][x0] - plane[y0][x0]) + fx * (plane[y1][x1] - plane[y0][x1])
        dx = (1 - fy) * (plane[y0][x1] - plane[y0][x0]) + fy * (plane[y1][x1] - plane[y1][x0])
        return sum(plane[i][j] * weight for i, j, weight in cells), dy, dx, cells

    def add(self, image, c, samples, count, at, moves):
        """Samples (y, x), in the map or up to a margin outside, of output ``at`` = (n, o, ph, pw).

        moves: ((index into offset, cells per unit) of x, the same of y).
        """
        n, o, ph, pw = at
        grad = self.grad_output[n][o][ph][pw] / max(count, 1)
        for y, x in samples:
            inside = min(max(y, 0), self.H - 1), min(max(x, 0), self.W - 1)
            value, dy, dx, cells = self.bilinear(image, c, *inside)
            self.output[at] += value / max(count, 1)
            for i, j, weight in cells:
                self.grad_input[image, c, i, j] += grad * weight
            for (index, per_unit), derivative, where, moved in zip(moves, (dx, dy), (x, y), (inside[1], inside[0])):
                if index is not None and where == moved:
                    self.grad_offset[index] += grad * derivative * per_unit


def mmcv(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, grad_output):
    h, w = output_size
    pooled = _Pooled(input, offset, (len(rois), input.shape[1], h, w), grad_output)
    for n, c, ph, pw in itertools.product(range(len(rois)), range(input.shape[1]), range(h), range(w)):
        batch, x1, y1, x2, y2 = rois[n].tolist()
        start_w, start_h = x1 * spatial_scale - 0.5, y1 * spatial_scale - 0.5
        width, height = x2 * spatial_scale - 0.5 - start_w, y2 * spatial_scale - 0.5 - start_h
        bin_h, bin_w = height / h, width / w
        grid_h = sampling_ratio if sampling_ratio > 0 else math.ceil(height / h)
        grid_w = sampling_ratio if sampling_ratio > 0 else math.ceil(width / w)
        moves = (None, 0), (None, 0)
        if offset.numel():
            start_w += gamma * width * offset[n, 0, ph, pw].item()
            start_h += gamma * height * offset[n, 1, ph, pw].item()
            moves = ((n, 0, ph, pw), gamma * width), ((n, 1, ph, pw), gamma * height)
        samples = []
        for iy, ix in itertools.product(range(grid_h), range(grid_w)):
            y = start_h + ph * bin_h + (iy + 0.5) * bin_h / grid_h
            x = start_w + pw * bin_w + (ix + 0.5) * bin_w / grid_w
            if not (y < -1 or y > pooled.H or x < -1 or x > pooled.W):
                samples.append((y, x))
        pooled.add(int(batch), c, samples, max(grid_h * grid_w, 1), (n, c, ph, pw), moves)
    return pooled.output, pooled.grad_input, pooled.grad_offset


def official(
    input, rois, offset, spatial_scale, output_dim, group_size, pooled_size, part_size, sample_per_part, trans_std,
    grad_output,
):  # fmt: skip
    pooled = _Pooled(input, offset, (len(rois), output_dim, pooled_size, pooled_size), grad_output)
    no_trans = not offset.numel()
    num_classes = 1 if no_trans else offset.shape[1] // 2
    channels_each_class = output_dim // num_classes
    bins = range(pooled_size), range(pooled_size)
    for n, ctop, ph, pw in itertools.product(range(len(rois)), range(output_dim), *bins):
        batch, x1, y1, x2, y2 = rois[n].tolist()
        start_w, start_h = _round(x1) * spatial_scale - 0.5, _round(y1) * spatial_scale - 0.5
        end_w, end_h = (_round(x2) + 1) * spatial_scale - 0.5, (_round(y2) + 1) * spatial_scale - 0.5
        width, height = max(end_w - start_w, 0.1), max(end_h - start_h, 0.1)
        bin_h, bin_w = height / pooled_size, width / pooled_size
        step_h, step_w = bin_h / sample_per_part, bin_w / sample_per_part
        part_h, part_w = ph * part_size // pooled_size, pw * part_size // pooled_size
        class_id = ctop // channels_each_class
        hstart, wstart = ph * bin_h + start_h, pw * bin_w + start_w
        moves = (None, 0), (None, 0)
        if not no_trans:
            index_x, index_y = ((n, 2 * class_id + axis, part_h, part_w) for axis in range(2))
            wstart += offset[index_x].item() * trans_std * width
            hstart += offset[index_y].item() * trans_std * height
            moves = (index_x, trans_std * width), (index_y, trans_std * height)
        gh, gw = ph * group_size // pooled_size, pw * group_size // pooled_size
        samples = []
        for ih, iw in itertools.product(range(sample_per_part), range(sample_per_part)):
            y, x = hstart + ih * step_h, wstart + iw * step_w
            if not (x < -0.5 or x > pooled.W - 0.5 or y < -0.5 or y > pooled.H - 0.5):
                samples.append((y, x))
        c = (ctop * group_size + gh) * group_size + gw
        pooled.add(int(batch), c, samples, len(samples), (n, ctop, ph, pw), moves)
    return pooled.output, pooled.grad_input, pooled.grad_offset
