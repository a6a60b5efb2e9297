"""Gaussians around the points that queries look at (SMCA, Gao et al., ICCV 2021, section 3.2)."""

import torch
from torch import Tensor


def log_gaussian(
    centres: Tensor,  # [B, Q, M, 2], (x, y)
    scales: Tensor | None,  # [B, Q, M, n], n = 1, 2 or 3
    shape: tuple[int, int],  # (H, W)
    smooth: float = 8.0,
    first_cell: float = 0.0,
) -> Tensor:  # [B, M, Q, H*W]
    """Logarithm of a Gaussian around each point, to be added to the products of attention before their softmax.

    ``-(a dx^2 + b dy^2 + c dx^2 dy^2) / smooth``, in fp32 at least; 0 at the point, negative elsewhere.

    Args:
        centres: in cells of the map, one for each head M; they may lie outside of it.
        scales: their squares are the factors, the inverse of the Gaussian's extent. None: ``a = b = 1``; one for both
            axes; one for x and one for y; or these and one for ``c``.
        shape: cells of the map.
        smooth: what the distances are divided by.
        first_cell: coordinate of the first cell's centre: 0 in SMCA-DETR, 0.5 in SAM-DETR.
    """
    dtype = torch.promote_types(centres.dtype, torch.float32)
    centres = centres.transpose(1, 2).to(dtype)  # [B, M, Q, 2]
    x, y = (torch.arange(cells, dtype=dtype, device=centres.device) + first_cell for cells in shape[::-1])
    dx, dy = (centres[..., :1] - x).square(), (centres[..., 1:] - y).square()  # [B, M, Q, W], [B, M, Q, H]
    if scales is None:
        return _sum_of_axes(dx, dy, smooth)
    number = scales.shape[-1]
    if number not in (1, 2, 3):
        raise ValueError(f'scales must end in 1 (both axes), 2 (x, y) or 3 (x, y, xy) factors, got {scales.shape=}')
    factors = scales.transpose(1, 2).to(dtype).square()
    a, b, *c = (factors.expand(*factors.shape[:-1], 2) if number == 1 else factors).split(1, -1)
    gaussian = _sum_of_axes(a * dx, b * dy, smooth)
    if c:
        gaussian = gaussian - (c[0] / smooth * dy)[..., None].mul(dx[..., None, :]).flatten(-2)
    return gaussian


def _sum_of_axes(dx: Tensor, dy: Tensor, smooth: float) -> Tensor:  # [..., W], [..., H] -> [..., H*W]
    return ((-dy / smooth)[..., :, None] - (dx / smooth)[..., None, :]).flatten(-2)
