"""Linear layers for inference: packed weights, and what PyTorch has to know about their op besides its kernel."""

import math

import torch.nn.functional as F
from torch import Tensor

from . import reference
from ._checks import PANEL, check_packed_linear
from ._register import register_for_inference


def pack(weight: Tensor) -> Tensor:  # [C_out, C_in] -> [panels, C_in, 32]
    """The outputs of a panel become neighbours; the last panel is filled with zeros."""
    return F.pad(weight.t(), (0, -len(weight) % PANEL)).unflatten(1, (-1, PANEL)).transpose(0, 1).contiguous()


register_for_inference(
    'packed_linear',
    check=lambda x, packed, bias, add, low, high: check_packed_linear(x, packed, bias, add),
    reference=reference.packed_linear,
    flops=lambda x, packed, bias, *others: 2 * math.prod(x) * bias[0],
)
