"""RoIAlign for ``mmcv._ext``: an output bin is a weighted sum over cells of the map, so an embedding bag computes it.

Names of the dimensions: R RoIs, P bins of all RoIs (R * height * width), T samples of all bins, C channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_NOWHERE = -2.0  # a coordinate left of every map: sampled there, all is zero


def roi_align_forward(
    input,
    rois,
    output,
    argmax_y,
    argmax_x,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """Pool ``rois`` from ``input [B, C, H, W]`` into ``output [R, C, aligned_height, aligned_width]``.

    Args:
        input (Tensor): features.
        rois (Tensor): ``[R, 5]``, image index and (x1, y1, x2, y2) in pixels of the image.
        output (Tensor): is overwritten.
        argmax_y, argmax_x (Tensor): receive, where ``pool_mode`` is 0, the place of the largest sample, as ``output``.
        aligned_height, aligned_width (int): bins per RoI.
        spatial_scale (float): cells per pixel.
        sampling_ratio (int): samples per bin and axis; 0 takes about one a cell.
        pool_mode (int): 0 maximum, 1 average of a bin's samples. A bin without samples gives zero.
        aligned (bool): cell centres lie at .5; otherwise at whole numbers, and a RoI is at least one cell wide.
    """
    bins = (aligned_height, aligned_width)
    samples = _samples(rois, input.shape, bins, spatial_scale, sampling_ratio, aligned)
    if pool_mode == 1:
        pooled = _average(_channels_last(input), samples, input.shape)
    else:
        pooled, argmax = _maximum(_channels_last(input), samples, input.shape)
        for target, coordinate in zip((argmax_y, argmax_x), argmax.unbind(-1)):
            target.copy_(_as_output(coordinate, bins))
    output.copy_(_as_output(pooled, bins))


def roi_align_backward(
    grad_output,
    rois,
    argmax_y,
    argmax_x,
    grad_input,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """Add to ``grad_input [B, C, H, W]`` the gradient that ``grad_output`` gives; arguments as in the forward."""
    B, C, H, W = shape = grad_input.shape
    if pool_mode == 1:
        samples = _samples(rois, shape, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
        grad_bins = grad_output.permute(0, 2, 3, 1).reshape(-1, C)  # [P, C]
        # The pooling is linear, so that the gradient is the same at any features, zeros included.
        table = grad_bins.new_zeros(B * H * W, C, dtype=_at_least_fp32(grad_bins), requires_grad=True)
        with torch.enable_grad():
            pooled = _average(table, samples, shape)
        (grad_table,) = torch.autograd.grad(pooled, table, grad_bins.to(pooled.dtype))
        grad_input.add_(grad_table.view(B, H, W, C).permute(0, 3, 1, 2))
    else:
        points = torch.stack((argmax_y, argmax_x), -1).to(_at_least_fp32(argmax_y))  # [R, C, h, w, 2]
        cells, weights = _bilinear(points.reshape(-1, 2), (H, W))
        maps = rois[:, 0].long()[:, None] * C + torch.arange(C, device=rois.device)  # [R, C]
        cells = cells.view(*points.shape[:-1], 4) + (maps * H * W)[:, :, None, None, None]
        gradient = grad_output[..., None] * weights.view(cells.shape)
        flat = gradient.new_zeros(grad_input.numel()).index_add_(0, cells.flatten(), gradient.flatten())
        grad_input.add_(flat.view(shape))


@dataclass
class _Samples:
    points: Tensor  # [T, 2], (y, x) in cells, the centre of the first cell is 0
    images: Tensor  # [T]
    bins: Tensor  # [T], the bin that a sample belongs to
    first: Tensor  # [P], the bin's first sample
    counts: Tensor  # [P], the bin's number of samples


def _samples(rois, shape, bins, spatial_scale, sampling_ratio, aligned):
    rois = rois.to(_at_least_fp32(rois))
    images = rois[:, 0].long()
    if images.numel() and not 0 <= images.min() <= images.max() < shape[0]:
        raise IndexError(f'rois[:, 0] must be image indices in [0, {shape[0]}), got {images.min()} to {images.max()}')
    start, end = (rois[:, 1:] * spatial_scale - (0.5 if aligned else 0)).view(-1, 2, 2).flip(-1).unbind(1)  # [R, 2]
    size = end - start  # [R, 2], height and width in cells
    if not aligned:
        size = size.clamp(min=1)
    elif not (size >= 0).all():
        raise ValueError('rois must have x2 >= x1 and y2 >= y1')
    per_roi = bins[0] * bins[1]
    bin_size = size / size.new_tensor(bins)
    grid = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil()
    grid = grid.long()  # [R, 2], samples per bin

    counts = grid.prod(1).repeat_interleave(per_roi)  # [P]
    first = counts.cumsum(0) - counts
    bin_of = torch.arange(len(counts), device=rois.device).repeat_interleave(counts)  # [T]
    number = torch.arange(len(bin_of), device=rois.device) - first[bin_of]
    roi = bin_of // per_roi
    place = torch.stack((bin_of % per_roi // bins[1], bin_of % bins[1]), 1)  # [T, 2], row and column of the bin
    step = torch.stack((number // grid[roi, 1], number % grid[roi, 1]), 1)  # [T, 2], row and column in the bin
    points = start[roi] + (place + (step.to(size.dtype) + 0.5) / grid[roi]) * bin_size[roi]
    return _Samples(points, images[roi], bin_of, first, counts)


def _bilinear(points, size):
    """Cells ``[T, 4]`` of a map of ``size`` (H, W) around each point ``[T, 2]``, and their weights.

    A point up to one cell outside counts as on the border, where ``grid_sample`` would fade out; farther out it has no
    weight.
    """
    size = torch.tensor(size, device=points.device)
    inside = ((points >= -1) & (points <= size)).all(1)
    points = points.clamp(min=0).minimum(size - 1)
    low = points.floor()
    y, x = (points - low).unbind(1)
    (y0, x0), (y1, x1) = low.long().unbind(1), (low.long() + 1).minimum(size - 1).unbind(1)
    cells = torch.stack([row * size[1] + column for row in (y0, y1) for column in (x0, x1)], 1)
    weights = torch.stack([row * column for row in (1 - y, y) for column in (1 - x, x)], 1)
    return cells, weights * inside[:, None]


def _average(table, samples, shape):  # [B*H*W, C] -> [P, C]
    cells, weights = _bilinear(samples.points, shape[2:])
    cells = cells + samples.images[:, None] * shape[2] * shape[3]
    weights = weights / samples.counts[samples.bins, None]
    return F.embedding_bag(
        cells.flatten(),
        table,
        samples.first * 4,
        mode='sum',
        per_sample_weights=weights.to(table.dtype).flatten(),
    )


def _maximum(table, samples, shape):  # [B*H*W, C] -> [P, C], [P, C, 2]
    cells, weights = _bilinear(samples.points, shape[2:])
    cells = cells + samples.images[:, None] * shape[2] * shape[3]
    values = F.embedding_bag(cells, table, mode='sum', per_sample_weights=weights.to(table.dtype))  # [T, C]
    P, C, most = len(samples.counts), table.shape[1], int(samples.counts.max()) if len(samples.counts) else 0
    if most == 0:
        return table.new_zeros(P, C), samples.points.new_full((P, C, 2), _NOWHERE)
    padded = values.new_full((P, most, C), -torch.inf)
    padded[samples.bins, torch.arange(len(values), device=values.device) - samples.first[samples.bins]] = values
    pooled, number = padded.max(1)
    empty = samples.counts == 0
    argmax = samples.points[(samples.first[:, None] + number).clamp(max=len(values) - 1)]
    return pooled.masked_fill(empty[:, None], 0), argmax.masked_fill(empty[:, None, None], _NOWHERE)


def _channels_last(input):  # [B, C, H, W] -> [B*H*W, C]
    return input.permute(0, 2, 3, 1).reshape(-1, input.shape[1]).to(_at_least_fp32(input))


def _as_output(rows, bins):  # [P, C] -> [R, C, h, w]
    return rows.view(-1, *bins, rows.shape[1]).permute(0, 3, 1, 2)


def _at_least_fp32(tensor):
    return torch.promote_types(tensor.dtype, torch.float32)
