"""Box arithmetic in fp32, whatever autocast is doing."""

import torch
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) of values in [0, 1], in fp32 at least.

    ``eps`` bounds numerator and denominator, as in the official code and mmdet; 16-bit types cannot hold 1e-5.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


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
