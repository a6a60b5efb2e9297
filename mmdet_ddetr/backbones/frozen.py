"""Layers that are not trained, computed as in inference."""

import copy
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# By the layer, with what its copy was made of: no part of the layer, whose copies and files it would grow.
_copies: WeakKeyDictionary[nn.Module, tuple[tuple, nn.Module]] = WeakKeyDictionary()


def is_frozen(layer: nn.Module) -> bool:
    """Whether what a layer computes stays the same in training, and nobody looks on: its modules have no hooks."""
    for module in layer.modules():
        if (isinstance(module, _BatchNorm) and module.training) or module._forward_hooks or module._forward_pre_hooks:
            return False
    return not any(parameter.requires_grad for parameter in layer.parameters())


def optimized(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a frozen layer, with batch norms folded and activations fused, for inputs that need no gradient.

    It is made anew when a weight has changed. What is written through ``.data`` is not seen: see :func:`forget`.
    """
    from mmdet_ddetr.inference.convolutions import fuse_convolutions  # which knows the backbones
    from mmdet_ddetr.inference.optimize import replace

    made_of = dtype, *((tensor.data_ptr(), tensor._version) for tensor in _tensors(layer))
    known, fused = _copies.get(layer, (None, None))
    if known != made_of:
        fused = replace(copy.deepcopy(layer).eval(), fuse_convolutions, dtype).to(memory_format=torch.channels_last)
        _copies[layer] = made_of, fused
    return fused


def forget(layers: Iterable[nn.Module]) -> None:
    """Make the copies of these layers anew."""
    for layer in layers:
        _copies.pop(layer, None)


def _tensors(layer: nn.Module) -> Iterator[Tensor]:
    yield from layer.parameters()
    yield from layer.buffers()
