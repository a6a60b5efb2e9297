"""Convolutions and linear layers that also add and activate, in one call. All that is said to oneDNN is said here."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet_ddetr.ops import has_compiled_kernel


class Activation(NamedTuple):
    """What oneDNN calls it, its numbers there, and what computes it in place elsewhere."""

    name: str
    scalars: list[float]
    compute: Callable[[Tensor], Tensor]


IDENTITY = Activation('none', [], lambda x: x)
_ACTIVATIONS = {
    type(None): IDENTITY,
    nn.Identity: IDENTITY,
    nn.ReLU: Activation('relu', [], F.relu_),
    nn.ReLU6: Activation('hardtanh', [0.0, 6.0], lambda x: x.clamp_(0.0, 6.0)),
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


FEW = 2**18  # outputs that are activated in a pass of its own without loss


def is_small(rows: int, weight: Tensor, activation: Activation) -> bool:
    """Whether BLAS is faster than oneDNN, which takes 10 us to begin, but activates what it has just computed.

    Args:
        rows: of what is multiplied.
        weight: [C_out, C_in, ...].
    """
    if weight.dtype is not torch.float32:
        return False
    return rows * weight.numel() <= 12 * 2**20 and (activation is IDENTITY or rows * weight.shape[0] <= FEW)


class BLASProduct:
    """``activation(x weight^T + bias + add)`` in plain operators; the turned weight is made when it is first needed."""

    def __init__(self, activation: Activation):
        self.activation = activation
        self.turned: Tensor | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None) -> Tensor:
        """x [N, C_in], weight [C_out, C_in, 1, 1] or [C_out, C_in], add [N, C_out]."""
        if self.turned is None:
            weight = weight.to_dense() if weight.is_mkldnn else weight
            self.turned = weight.flatten(1).t().contiguous()
        y = torch.mm(x, self.turned) if bias is None else torch.addmm(bias, x, self.turned)
        return self.activation.compute(y if add is None else y.add_(add))


class Conv2d(nn.Module):
    """``activation(conv(x) + add)`` in channels-last memory.

    oneDNN packs the weights in a way that depends on the size of the maps. They are kept packed for a size that comes
    twice in a row, because to pack weights again that are packed in another way takes longer than the convolution.
    On small maps, convolutions of single cells are products of BLAS. Depthwise ones are an op of this package, where it
    is faster: on small maps, and where a map is not padded alike at both ends, which would be a copy for oneDNN.

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
        self.blas = None
        if weight.shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1:
            self.blas = BLASProduct(activation)
        self.taps = None  # [kh, kw, C] of a depthwise convolution
        is_depthwise = self.groups == conv.in_channels == conv.out_channels and self.dilation == (1, 1)
        if is_depthwise and self.by_onednn and has_compiled_kernel('depthwise_conv2d', 'cpu'):
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
            y = torch.ops.mmdet_ddetr.depthwise_conv2d(_cells(x), self.taps, self.bias, self.stride, padding)
            return self.activation.compute(_maps(y if add is None else y.add_(_cells(add))))
        if self.blas is not None and self.by_onednn and is_small(x[:, 0].numel(), self.weight, self.activation):
            rows, add = (y if y is None else _cells(y).flatten(0, 2) for y in (x, add))
            return _maps(self.blas(rows, self.weight, self.bias, add).unflatten(0, _cells(x).shape[:3]))
        arguments = (top, left), self.stride, self.dilation, self.groups
        if not self.by_onednn:
            y = F.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
            return self.activation.compute(y if add is None else y.add_(add))
        weight = self._packed(x.shape, arguments)
        name, scalars = self.activation[:2]
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
        """Few enough to activate them in a pass of its own."""
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
    """``activation(linear(x) + add)`` with weights that are packed once; of the two, one is given.

    Args:
        *linears: layers of the same input, whose outputs are one tensor, one after the other.
        dtype: to compute in.
        activation: of the output.
    """

    def __init__(self, *linears: nn.Linear, dtype: torch.dtype, activation: Activation = IDENTITY):
        super().__init__()
        self.dtype, self.activation = dtype, activation
        weight = torch.cat([linear.weight.detach() for linear in linears]).to(dtype)
        biases = [linear.bias for linear in linears]
        self.bias = None if biases[0] is None else nn.Parameter(torch.cat(biases).detach().to(dtype), False)
        self.packed = has_onednn(weight)
        self.blas = BLASProduct(activation)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1024)
        else:
            self.weight = nn.Parameter(weight, False)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:  # [..., C_in] -> [..., C_out]
        x = x.to(self.dtype)
        add = add if add is None else add.to(self.dtype)
        if not self.packed:
            y = F.linear(x, self.weight, self.bias)
            return self.activation.compute(y) if add is None else y.add_(add)
        if is_small(x.shape[:-1].numel(), self.weight, self.activation):
            rows, add = (y if y is None else y.flatten(0, -2) for y in (x, add))
            return self.blas(rows, self.weight, self.bias, add).unflatten(0, x.shape[:-1])
        if add is None:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, *self.activation[:2], None)
        return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias, 'add')
