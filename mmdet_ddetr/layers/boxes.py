"""Box arithmetic in fp32, whatever autocast is doing."""

import math

import torch
from torch import Tensor

POSITION_STEP, SIZE_STEP = 0.1, 0.2  # the standard deviations of Fast R-CNN's targets, as mmdet's box coders have them
MAX_GROWTH = 1000 / 16  # of a size, as in mmdet's box coders


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) of values in [0, 1], in fp32 at least.

    ``eps`` bounds numerator and denominator, as in the official code and mmdet; 16-bit types cannot hold 1e-5.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def shift_box(delta: Tensor, reference: Tensor) -> Tensor:
    """A box moved by shares of its own size, in fp32 at least (Girshick, Fast R-CNN, 2015).

    A step is finer the smaller the box; those of ``refine_box`` are the same for every size.

    Args:
        delta: regression output [..., 4]: the centre moves by 0.1 of the reference's size per unit, the size grows by
            exp(0.2) per unit.
        reference: [..., 4] (cx, cy, w, h) in [0, 1].

    Returns:
        Boxes [..., 4], (cx, cy, w, h); they may reach beyond [0, 1].
    """
    delta = delta.to(torch.promote_types(delta.dtype, torch.float32))
    centre, size = reference[..., :2], reference[..., 2:]
    growth = (SIZE_STEP * delta[..., 2:]).clamp(max=math.log(MAX_GROWTH)).exp()
    return torch.cat([centre + POSITION_STEP * delta[..., :2] * size, size * growth], -1)


def refine_box(delta: Tensor, reference: Tensor | None, eps: float = 1e-5) -> Tensor:
    """``sigmoid(delta + inverse_sigmoid(reference))``, in fp32 at least.

    Args:
        delta: regression output [..., 4] in (cx, cy, w, h), before the sigmoid.
        reference: [..., 2] (cx, cy) or [..., 4] (cx, cy, w, h), normalised by the unpadded image, in [0, 1]; a 2-dim
            one touches cx and cy only; None leaves all four free (DETR).
        eps: of ``inverse_sigmoid``.

    Returns:
        Boxes [..., 4], (cx, cy, w, h) in [0, 1].
    """
    delta = delta.to(torch.promote_types(delta.dtype, torch.float32))
    if reference is None:
        return delta.sigmoid()
    if reference.shape[-1] not in (2, 4):
        raise ValueError(f'reference must end in 2 (cx, cy) or 4 (cx, cy, w, h) coordinates, got {reference.shape=}')
    shift = inverse_sigmoid(reference, eps)
    if reference.shape[-1] == 2:
        shift = torch.nn.functional.pad(shift, (0, 2))
    return (delta + shift).sigmoid()
