"""Convolutions and linear layers that also add and activate, in one call. All that is said to oneDNN is said here."""

from math import inf
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet_ddetr.ops import has_compiled_kernel
from mmdet_ddetr.ops.packed_linear import pack


class Activation(NamedTuple):
    """Bounds of the output, and what oneDNN calls it, with its numbers there."""

    low: float
    high: float
    name: str
    scalars: list[float]

    def __call__(self, x: Tensor) -> Tensor:
        """In place."""
        return x if self is IDENTITY else x.clamp_(self.low, self.high)


IDENTITY = Activation(-inf, inf, 'none', [])
_ACTIVATIONS = {
    type(None): IDENTITY,
    nn.Identity: IDENTITY,
    nn.ReLU: Activation(0.0, inf, 'relu', []),
    nn.ReLU6: Activation(0.0, 6.0, 'hardtanh', [0.0, 6.0]),
}


def activation_of(module: nn.Module | None) -> Activation | None:
    """The activation that a module is, None where it is another or something else."""
    return _ACTIVATIONS.get(type(module))


def has_onednn(weight: Tensor) -> bool:
    """Whether oneDNN computes with such weights at full speed here."""
    if weight.device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if weight.dtype is torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return weight.dtype is torch.float32


SMALL = 2**26  # multiplications, up to which this package's op is faster than oneDNN, which takes 20 us to begin
FEW = 2**19  # outputs of a depthwise convolution, about; with more of them, oneDNN is the faster one


class SmallProduct:
    """``activation(x weight^T + bias + add)`` by this package's op; the weight is packed when it is first needed.

    Args:
        weight: [C_out, C_in, ...], the last dimensions of size 1.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation):
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.bounds = activation.low, activation.high
        self.packed: Tensor | None = None
        is_possible = (
            has_onednn(weight) and weight.dtype is torch.float32 and has_compiled_kernel('packed_linear', 'cpu')
        )
        self.most_rows = SMALL // max(weight.numel(), 1) if is_possible else -1

    def takes(self, x: Tensor) -> bool:
        """Whether it is faster than oneDNN; x [..., C_in]."""
        return x.shape[:-1].numel() <= self.most_rows

    def __call__(self, x: Tensor, weight: Tensor, add: Tensor | None) -> Tensor:
        """x [..., C_in], add [..., C_out]."""
        if self.packed is None:
            weight = weight.to_dense() if weight.is_mkldnn else weight
            self.packed = pack(weight.flatten(1))
        return torch.ops.mmdet_ddetr.packed_linear(x, self.packed, self.bias, add, *self.bounds)


class Conv2d(nn.Module):
    """``activation(conv(x) + add)`` in channels-last memory.

    oneDNN packs the weights in a way that depends on the size of the maps. They are kept packed for a size that comes
    twice in a row, because to pack weights again that are packed in another way takes longer than the convolution.
    Ops of this package compute what they are faster at: convolutions of single cells on small maps, and depthwise ones
    on small maps and where a map is not padded alike at both ends, which would be a copy for oneDNN.

    Args:
        conv: whose stride, padding, dilation and groups it has.
        weight, bias: in the dtype to compute in.
        activation: of the sum.
    """

    def __init__(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: Activation = IDENTITY):
        super().__init__()
        self.dtype = weight.dtype
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), False)
        self.bias = bias if bias is None else nn.Parameter(bias, False)
        self.activation = activation
        self.same_padding = getattr(conv, 'same_padding', None)  # of Conv2dSame: depends on the map's size
        self.groups, self.dilation, self.stride, self.padding = conv.groups, *_pairs(conv)
        self.by_onednn = has_onednn(weight)
        self.product = None
        if weight.shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1:
            self.product = SmallProduct(weight, bias, activation)
        self.taps = None  # [kh, kw, C] of a depthwise convolution
        is_depthwise = self.groups == conv.in_channels == conv.out_channels and self.dilation == (1, 1)
        if is_depthwise and self.by_onednn and has_compiled_kernel('depthwise_conv2d_clamped', 'cpu'):
            self.taps = nn.Parameter(weight[:, 0].permute(1, 2, 0).contiguous(), False)
        self.last: tuple[torch.Size, Tensor | None] = torch.Size(), None  # size of maps, weights packed for it

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [B, C, H, W]; add like the output, which may take its memory."""
        top, left, bottom, right = self._padding(x.shape[-2:])
        is_even = (top, left) == (bottom, right)
        by_taps = self.taps is not None and (not is_even or self._has_few_outputs(x))
        if not is_even and not by_taps:  # before planes of an image become channels-last
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        x = x.to(self.dtype, memory_format=torch.channels_last)
        if by_taps:
            padding = top, left, bottom, right
            bounds = self.activation[:2] if add is None else IDENTITY[:2]
            y = torch.ops.mmdet_ddetr.depthwise_conv2d_clamped(
                _cells(x), self.taps, self.bias, self.stride, padding, *bounds
            )
            return _maps(y if add is None else self.activation(y.add_(_cells(add))))
        if self.product is not None and self.product.takes(_cells(x)):
            return _maps(self.product(_cells(x), self.weight, add if add is None else _cells(add)))
        arguments = (top, left), self.stride, self.dilation, self.groups
        if not self.by_onednn:
            y = F.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
            return self.activation(y if add is None else y.add_(add))
        weight = self._packed(x.shape, arguments)
        _, _, name, scalars = self.activation
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise.default(
                x, weight, self.bias, *arguments, name, scalars, None
            )
        add = add.to(self.dtype, memory_format=torch.channels_last)
        name = None if name == 'none' else name
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            add, x, weight, self.bias, *arguments, 'add', 1.0, name, scalars, None
        )

    def _padding(self, size: torch.Size) -> tuple[int, int, int, int]:
        """Rows and columns of zeros (top, left, bottom, right)."""
        if self.same_padding is None:
            return *self.padding, *self.padding
        (top, bottom), (left, right) = self.same_padding(size)
        return top, left, bottom, right

    def _has_few_outputs(self, x: Tensor) -> bool:
        """Inputs by strides are few enough for the op of this package to be faster than oneDNN."""
        return self.dtype is torch.float32 and x.numel() <= FEW * self.stride[0] * self.stride[1]

    def _packed(self, size: torch.Size, arguments: tuple) -> Tensor:
        last, packed = self.last  # read once: other threads may write it
        if last != size:
            self.last = size, None
            return self.weight
        if packed is None:
            packed = torch._C._nn.mkldnn_reorder_conv2d_weight(self.weight.to_mkldnn(), *arguments, size)
            self.last = size, packed
        return packed


def _cells(x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, H, W, C]
    return x.permute(0, 2, 3, 1)


def _maps(x: Tensor) -> Tensor:  # the inverse of _cells
    return x.permute(0, 3, 1, 2)


def _pairs(conv: nn.Conv2d) -> tuple[tuple[int, int], ...]:
    return tuple((n, n) if isinstance(n, int) else tuple(n) for n in (conv.dilation, conv.stride, conv.padding))


class Linear(nn.Module):
    """``activation(linear(x) + add)`` with weights that are packed once.

    Args:
        weight, bias: of a linear layer.
        dtype: to compute in.
        activation: of the output.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: Activation = IDENTITY):
        super().__init__()
        self.dtype, self.activation = dtype, activation
        weight = weight.detach().to(dtype)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), False)
        self.packed = has_onednn(weight)
        self.product = SmallProduct(weight, self.bias, activation)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1024)
        else:
            self.weight = nn.Parameter(weight, False)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:  # [..., C_in] -> [..., C_out]
        x = x.to(self.dtype)
        add = add if add is None else add.to(self.dtype)
        if not self.packed:
            y = F.linear(x, self.weight, self.bias)
            return self.activation(y if add is None else y.add_(add))
        if self.product.takes(x):
            return self.product(x, self.weight, add)
        if add is None:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, *self.activation[2:], None)
        return self.activation(torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias, 'add'))
