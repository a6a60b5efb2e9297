"""This package's operator inside other people's models."""

from functools import cache

import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mmdet_ddetr.layers import MSDeformAttn
from mmdet_ddetr.ops import host_shapes


def accelerate(model: nn.Module) -> int:
    """Let mmcv's ``MultiScaleDeformableAttention`` modules inside a model compute with this package's operator.

    The modules stay the objects that they are, with parameters, hooks and mode, and remain instances of their class;
    only their forward changes. A subclass that has its own forward is left alone.

    Args:
        model: any model; in DistributedDataParallel or another wrapper, compiled or not. Changed in place.

    Returns:
        How many modules were changed; 0 if all are already.
    """
    # Of the bound method, so that a forward set on the instance (activation checkpointing does that) counts as its own.
    modules = [
        module
        for module in model.modules()
        if getattr(module.forward, '__func__', None) is MultiScaleDeformableAttention.forward
    ]
    for module in modules:
        module.__class__ = _accelerated(type(module))
    return len(modules)


def is_accelerated(module: nn.Module) -> bool:
    """Whether ``accelerate`` has changed this module."""
    return isinstance(module, _Accelerated)


class _Accelerated:
    """What ``accelerate`` puts before mmcv's class or a subclass of it."""

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        *,
        residual: Tensor | None = None,  # identity's old name, which mmcv still takes
        **kwargs,
    ) -> Tensor:
        """See ``MSDeformAttn.forward``."""
        return MSDeformAttn.forward(
            self,
            query,
            value=value,
            identity=residual if identity is None else identity,
            query_pos=query_pos,
            key_padding_mask=key_padding_mask,
            reference_points=reference_points,
            spatial_shapes=_read_once(spatial_shapes),
        )

    def __reduce_ex__(self, protocol):
        """Pickle by the original class: this one has no name to import it by."""
        _, original = type(self).__bases__
        _, _, *state = super().__reduce_ex__(protocol)
        return (_new, (original,), *state)


@cache
def _accelerated(cls: type) -> type:
    """A subclass, because mmdet's ``init_weights`` finds the modules to initialise by ``isinstance``."""
    return type(f'Accelerated{cls.__name__}', (_Accelerated, cls), {'__module__': __name__})


def _new(cls: type) -> nn.Module:
    cls = _accelerated(cls)
    return cls.__new__(cls)


_READ = WeakTensorKeyDictionary()  # spatial_shapes on a device -> (its version when read, what was read)


def _read_once(spatial_shapes):
    """``host_shapes`` with one device sync per tensor: mmdet passes the same one to all layers of a forward.

    A tensor that was modified since has another version and is read again.
    """
    if (
        not isinstance(spatial_shapes, Tensor)
        or spatial_shapes.is_cpu  # costs nothing to read
        or spatial_shapes.is_inference()  # has no version
        or torch.compiler.is_compiling()
    ):
        return spatial_shapes
    version, shapes = _READ.get(spatial_shapes, (None, None))
    if version != spatial_shapes._version:
        shapes = host_shapes(spatial_shapes)
        _READ[spatial_shapes] = spatial_shapes._version, shapes
    return shapes
