"""RoIAlign over the cells of a transformer's map, by the attention's operator."""

import torch
from torch import Tensor

from mmdet_ddetr.ops import ms_deform_attn


def roi_align(
    memory: Tensor,  # [B, H*W, C]
    shape: tuple[int, int],  # (H, W)
    boxes: Tensor,  # [B, Q, 4]
    limits: Tensor | None = None,  # [B, 2]
    bins: int = 7,
) -> Tensor:  # [B, Q, bins*bins, C]
    """Features of boxes, ``bins`` rows of ``bins`` columns each, by RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3).

    The rules are those of torchvision's ``roi_align`` with ``aligned=True`` and of mmcv's: a bin is the mean of samples
    that are at most one cell apart; a sample up to half a cell outside of the map counts as on its border and is zero
    farther out; boxes get no gradient. An attention of one head computes it whose points are the samples: there are as
    many of them in every bin as the largest box needs, so that no shape depends on the values of the boxes and nothing
    waits for the device.

    Args:
        boxes: (cx, cy, w, h) in cells, where cell centres lie at .5 and w and h are at most W and H.
        limits: (width, height) of the part of each map that is image, in cells; what lies beyond counts as outside of
            the map. None: all of it.
    """
    H, W = shape
    B, Q, _ = boxes.shape
    with torch.no_grad():
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
        width, height = (W, H) if limits is None else limits.to(boxes.dtype)[:, :, None, None, None].unbind(1)
        x, is_column = _samples(boxes[..., 0], boxes[..., 2], width, W, bins)  # [B, Q, bins, columns]
        y, is_row = _samples(boxes[..., 1], boxes[..., 3], height, H, bins)  # [B, Q, bins, rows]
        weights = is_row[:, :, :, None, :, None] * is_column[:, :, None, :, None, :]
        points = torch.stack(torch.broadcast_tensors(x[:, :, None, :, None, :] / W, y[:, :, :, None, :, None] / H), -1)
        points = points.masked_fill((weights == 0)[..., None], -1.0)  # outside, where the operator reads nothing
    output = ms_deform_attn(
        memory[:, :, None],
        [shape],
        points.view(B, Q * bins**2, 1, 1, -1, 2),
        weights.view(B, Q * bins**2, 1, 1, -1),
    )
    return output.view(B, Q, bins**2, -1)


def _samples(
    centre: Tensor,  # [B, Q]
    size: Tensor,  # [B, Q]
    limit: Tensor | int,  # [B, 1, 1, 1]
    cells: int,
    bins: int,
) -> tuple[Tensor, Tensor]:  # [B, Q, bins, samples] each
    """Places of the samples along one axis of the map, in cells, and their weights in the mean of their bin."""
    most = -(-cells // bins)
    if torch.compiler.is_exporting():  # a size that may be 1 would fix the map's
        most = torch.sym_max(most, 2)
    count = (size / bins).ceil().clamp(1, most)[..., None, None]
    bin_ = torch.arange(bins, dtype=size.dtype, device=size.device)[:, None]
    sample = torch.arange(most, dtype=size.dtype, device=size.device)
    place = (centre - size / 2)[..., None, None] + (bin_ + (sample + 0.5) / count) * (size / bins)[..., None, None]
    counts = (sample < count) & (place >= -0.5) & (place <= limit + 0.5)
    return place.clamp(min=0.5).clamp(max=limit - 0.5), counts / count
