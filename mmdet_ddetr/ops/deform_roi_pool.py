"""Deformable RoI pooling, plain and position-sensitive (DCN, arXiv:1703.06211, sections 2.2 and 2.3).

The public functions, and what PyTorch has to know about their op besides its kernels.
"""

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from . import reference
from ._checks import check_deform_roi_pool, check_pool_grad_output
from ._differentiable import DifferentiableOp, as_points

_OP = torch.ops.mmdet_ddetr.deform_roi_pool.default


def deform_roi_pool(
    input: Tensor,  # [B, C, H, W]
    rois: Tensor,  # [R, 5]
    offset: Tensor | None,  # [R, 2, h, w]
    output_size: int | tuple[int, int],  # (h, w)
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:  # [R, C, h, w]
    """Means of features in the bins of regions, each bin moved by an offset of its own.

    Arguments and result are those of ``mmcv.ops.deform_roi_pool``. It differs from mmcv's kernel in one thing: the
    derivatives of samples that lie outside the map, where mmcv's extrapolates, are those of the pooled values.

    Args:
        input: features; fp64, fp32, fp16 or bf16. In ``channels_last`` they are read without a copy.
        rois: number of the image and corners (x1, y1, x2, y2). They have no gradient.
        offset: (x, y) of each bin, times ``gamma`` in widths and heights of its RoI; None: 0. Coordinates are computed
            in fp32 (fp64 where input is fp64).
        output_size: bins of a RoI.
        spatial_scale: cells of input per unit of ``rois``, 1 / stride.
        sampling_ratio: samples of a bin along an axis; 0: about one a cell, so many as the RoI needs.
        gamma: scale of the offsets.

    A pixel's centre lies at .5, as for ``RoIAlign(aligned=True)``. A sample is bilinear; up to one cell outside the map
    it counts as on its border, farther out it is zero. What is not finite gives NaN in its bins. A factor for each bin
    (DCNv2) is a product with the result.

    Raises:
        RuntimeError: an argument's shape, dtype or device does not fit; on the CPU also where a RoI is of no image,
            which elsewhere gives NaN.
    """
    h, w = output_size = list(_pair(output_size))
    rois, offset = as_points(input, rois, offset)
    if offset is not None and offset.shape != (rois.shape[0], 2, h, w):
        raise RuntimeError(f'offset must be [R, 2, h, w] = [{rois.shape[0]}, 2, {h}, {w}], got {list(offset.shape)}')
    return _OP(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, 1, False)


def deform_ps_roi_pool(
    input: Tensor,  # [B, output_dim*group_size**2, H, W]
    rois: Tensor,  # [R, 5]
    offset: Tensor | None,  # [R, 2*K, part_size, part_size]
    spatial_scale: float,
    output_dim: int,
    group_size: int,
    pooled_size: int,
    part_size: int | None = None,
    sample_per_part: int = 4,
    trans_std: float = 0.1,
) -> Tensor:  # [R, output_dim, pooled_size, pooled_size]
    """Position-sensitive RoI pooling (R-FCN, arXiv:1605.06409) whose bins are moved by offsets.

    Each bin has score maps of its own: a grid of ``group_size`` x ``group_size`` is laid over the RoI, and maps
    ``(o * group_size + row) * group_size + column`` are those of output channel o in its cells. Arguments and result
    are those of MXNet's ``DeformablePSROIPooling``, the official code's operator; at a coordinate that is a whole
    number, where the official derivative is 0, that towards larger coordinates is taken.

    Args:
        input: score maps; fp64, fp32, fp16 or bf16.
        rois: number of the image and corners (x1, y1, x2, y2) in pixels, rounded here; the pixel (x2, y2) belongs to
            the RoI. They have no gradient.
        offset: (x, y) of each part for each of K classes, each of output_dim / K channels, times ``trans_std`` in
            widths and heights of the RoI; None (``no_trans``): 0.
        spatial_scale: cells of input per pixel, 1 / stride.
        output_dim: channels of the result.
        group_size: rows and columns of the grid of score maps.
        pooled_size: rows and columns of bins.
        part_size: rows and columns of ``offset``; None: as many as bins.
        sample_per_part: samples of a bin along an axis.
        trans_std: scale of the offsets.

    A sample is bilinear; up to half a cell outside the map it counts as on its border, those farther out are left out
    of the mean. What is not finite gives NaN in its bins.

    Raises:
        RuntimeError: an argument's shape, dtype or device does not fit; on the CPU also where a RoI is of no image,
            which elsewhere gives NaN.
    """
    if sample_per_part < 1:
        raise RuntimeError(f'sample_per_part must be at least 1, got {sample_per_part}')
    part_size = pooled_size if part_size is None else part_size
    channels = output_dim * group_size**2
    if input.dim() != 4 or input.shape[1] != channels:
        raise RuntimeError(
            f'input must be [B, output_dim*group_size**2, H, W] = [B, {channels}, H, W], got {list(input.shape)}'
        )
    rois, offset = as_points(input, rois, offset)
    if offset is not None:
        if offset.dim() != 4 or offset.shape[2:] != (part_size, part_size):
            raise RuntimeError(
                f'offset must be [R, 2*K, part_size, part_size] = [{rois.shape[0]}, 2*K, {part_size}, {part_size}], '
                f'got {list(offset.shape)}'
            )
        if part_size != pooled_size:
            part = torch.arange(pooled_size, device=offset.device) * part_size // pooled_size
            offset = offset[:, :, part[:, None], part]
    size = [pooled_size, pooled_size]
    return _OP(input, rois, offset, size, spatial_scale, sample_per_part, trans_std, group_size, True)


def _narrow(dtype, input, rois, offset, *options):
    """input stays as it is: mmdet's extractors write the result into a tensor of its dtype. There is no product here
    that a narrow type would make faster; points may come from one that is."""
    return input, *as_points(input, rois, offset), *options


def _enter(size, input, rois, offset, *options):
    """vmap: the images of an example follow those of the one before it."""
    B, R = input.shape[0] // size, rois.shape[0] // size
    rois = rois.to(torch.promote_types(rois.dtype, torch.float32))  # a narrow type has no large numbers of images
    first = (torch.arange(size, device=rois.device) * B).repeat_interleave(R)
    return input, rois + torch.nn.functional.pad(first[:, None], (0, 4)), offset, *options


def _flops(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size, rounded):
    """Five multiply-adds for a sample of a channel, each two operations; where the RoIs decide, four samples a bin."""
    samples = sampling_ratio**2 if sampling_ratio > 0 else 4
    return 2 * 5 * rois[0] * output_size[0] * output_size[1] * samples * (input[1] // group_size**2)


DifferentiableOp(
    'deform_roi_pool',
    check=check_deform_roi_pool,
    check_grad=check_pool_grad_output,
    reference=reference.deform_roi_pool,
    flops=_flops,
    needs={0: 0, 2: 1},  # input; offset
    narrow=_narrow,
    axes={0: 0, 1: 0, 2: 0},
    output_axis=0,
    enter=_enter,
).register()
