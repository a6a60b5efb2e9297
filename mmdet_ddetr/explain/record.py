"""Records what the queries of a prediction look at."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from torch import Tensor, nn

from mmdet_ddetr.layers import DotProductAttention, MSDeformAttn, OwnLevelDeformAttn
from mmdet_ddetr.ops import host_shapes
from mmdet_ddetr.ops.reference import sampling_locations_of

ATTENTION_OF = dict(encoder='self_attn', decoder='cross_attn')


@dataclass(frozen=True)
class SampledAttention:
    """One deformable attention: the points that every query sampled, and their weights."""

    locations: Tensor  # [B, Q, M, L, K, 2], (x, y) in the padded map of the level, 1.0 = its far edge
    weights: Tensor  # [B, Q, M, L, K], a softmax over L*K
    reference_points: Tensor  # [B, Q, L, 2 or 4], (cx, cy) or (cx, cy, w, h), as the locations


@dataclass(frozen=True)
class DenseAttention:
    """One multi-head attention. Its S x S weights would fill the memory: they are computed for the query asked for."""

    queries: Tensor  # [B, M, Q, D], projected, divided by sqrt(D)
    keys: Tensor  # [B, M, S, D], projected
    padding: Tensor | None  # [B, S], True = padding
    bias: Tensor | None = None  # [B, M or 1, Q, S], added to the products

    def weights(self, image: int, query: int) -> Tensor:  # [M, S]
        """Softmax over the keys, for one query of one image of the batch."""
        logits = (self.keys[image] @ self.queries[image, :, query, :, None]).squeeze(-1)
        if self.bias is not None:
            logits = logits + self.bias[image, :, query]
        if self.padding is not None:
            logits = logits.masked_fill(self.padding[image], float('-inf'))
        return logits.softmax(-1)


@dataclass
class Recording:
    """What ``record`` gathers of the latest forward pass."""

    encoder: list[SampledAttention] | list[DenseAttention]  # self-attention per layer
    decoder: list[SampledAttention] | list[DenseAttention]  # cross-attention per layer
    spatial_shapes: list[tuple[int, int]] = field(default_factory=list)  # (H, W) of the maps attended to
    valid_ratios: Tensor | None = None  # [B, L, 2], share of each map's width and height that is image
    head_outputs: tuple = ()  # logits [layers, B, Q, classes], boxes [layers, B, Q, 4]


def attentions(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The attentions of a detector that can be explained: the encoder's self-, the decoder's cross-attentions.

    Raises:
        TypeError: the model has no DETR's encoder and decoder, or attends otherwise.
    """
    found = {}
    for part, name in ATTENTION_OF.items():
        layers = getattr(getattr(model, part, None), 'layers', None)
        if layers is None:
            raise TypeError(
                f'model must have a transformer {part} with layers, as DETR has; {type(model).__name__} not'
            )
        found[part] = [getattr(layer, name, None) for layer in layers]
        for attention in found[part]:
            if not (_is_deformable(attention) or _is_dense(attention)):
                raise TypeError(
                    f'model: the {name} in the {part} of {type(model).__name__} must be MSDeformAttn or '
                    f'MultiheadAttention, got {type(attention).__name__}'
                )
    return found


def is_deformable(model: nn.Module) -> bool:
    """Whether all attentions that ``record`` records sample points."""
    return all(_is_deformable(attention) for layers in attentions(model).values() for attention in layers)


def _is_deformable(attention: nn.Module) -> bool:
    return isinstance(attention, MSDeformAttn | MultiScaleDeformableAttention) and not isinstance(
        attention, OwnLevelDeformAttn
    )


def _is_dense(attention: nn.Module) -> bool:
    return _product_of(attention) is not None or isinstance(getattr(attention, 'attn', None), nn.MultiheadAttention)


def _product_of(attention: nn.Module) -> DotProductAttention | None:
    """The product inside of the attentions here."""
    return next((module for module in attention.children() if isinstance(module, DotProductAttention)), None)


def _what_to_read(attention: nn.Module):
    """The module whose arguments tell what the queries look at, and the function that reads them."""
    if _is_deformable(attention):
        return attention, _sampled
    product = _product_of(attention)
    return (attention.attn, _dense) if product is None else (product, _product)


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record the attentions of a DETR or Deformable DETR in whatever it computes inside the ``with``.

    Results stay what they are, bit for bit: hooks read the inputs of each attention and compute locations and weights
    once more, because the fused operator never holds them. Outside the ``with`` the model has no hook and no cost.

    Args:
        model: detector with ``encoder``, ``decoder`` and ``bbox_head``; mmdet's own with mmcv's attentions as well.

    Yields:
        The recording of the latest forward pass, on the model's device; a full-size Deformable DETR takes 200 MB.

    Raises:
        TypeError: the model's attentions are of another kind.
    """
    found = attentions(model)
    recording = Recording(*([None] * len(found[part]) for part in ('encoder', 'decoder')))
    first_level = 0 if is_deformable(model) else -1  # DETR takes the last map alone
    handles = [
        model.encoder.register_forward_pre_hook(_geometry_hook(recording), with_kwargs=True),
        model.bbox_head.register_forward_hook(_head_hook(recording)),
        (model.neck if model.with_neck else model.backbone).register_forward_hook(
            _features_hook(recording, first_level)
        ),
    ]
    for part, modules in found.items():
        for index, attention in enumerate(modules):
            module, read = _what_to_read(attention)
            hook = _attention_hook(getattr(recording, part), index, read)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _geometry_hook(recording: Recording):
    def hook(encoder, args, kwargs):
        recording.valid_ratios = kwargs.get('valid_ratios')

    return hook


def _features_hook(recording: Recording, first_level: int):
    def hook(neck, args, maps):
        recording.spatial_shapes = [tuple(feat.shape[-2:]) for feat in maps[first_level:]]

    return hook


def _head_hook(recording: Recording):
    def hook(head, args, outputs):
        recording.head_outputs = tuple(output.detach() for output in outputs)

    return hook


def _attention_hook(layers: list, index: int, read):
    def hook(module, args, kwargs):
        arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
        arguments.apply_defaults()
        with torch.no_grad():
            layers[index] = read(module, **arguments.arguments)

    return hook


def _sampled(
    module: MSDeformAttn | MultiScaleDeformableAttention,
    query: Tensor,  # [B, Q, C] (batch_first) or [Q, B, C]
    query_pos: Tensor | None,
    reference_points: Tensor,  # [B, Q, L, 2 or 4]
    spatial_shapes: Tensor | list[tuple[int, int]],
    **others,
) -> SampledAttention:
    if query_pos is not None:
        query = query + query_pos
    if not module.batch_first:
        query = query.transpose(0, 1)
    B, Q, _ = query.shape
    M, L, K = module.num_heads, module.num_levels, module.num_points
    offsets = module.sampling_offsets(query).view(B, Q, M, L, K, 2)
    logits = module.attention_weights(query).view(B, Q, M, L * K).float()
    return SampledAttention(
        locations=sampling_locations_of(host_shapes(spatial_shapes), reference_points, offsets),
        weights=logits.softmax(-1).view(B, Q, M, L, K),
        reference_points=reference_points.float(),
    )


def _dense(
    module: nn.MultiheadAttention,
    query: Tensor,  # [B, Q, C] (batch_first) or [Q, B, C]
    key: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    **others,
) -> DenseAttention:
    if attn_mask is not None:
        raise ValueError('attn_mask must be None in the attentions that are recorded, as in DETR')
    if not module.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    bias = (None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[:2]
    if module.in_proj_weight is not None:
        weight = module.in_proj_weight.chunk(3)[:2]
    else:
        weight = module.q_proj_weight, module.k_proj_weight
    queries, keys = (
        F.linear(x, w, b).unflatten(-1, (module.num_heads, -1)).transpose(1, 2).float()
        for x, w, b in zip((query, key), weight, bias)
    )
    return DenseAttention(queries / queries.shape[-1] ** 0.5, keys, key_padding_mask)


def _product(
    module: DotProductAttention,
    query: Tensor,  # [B, Q, M*D]
    key: Tensor,  # [B, S, M*D]
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    bias: Tensor | None,
    **others,
) -> DenseAttention:
    if attn_mask is not None:
        raise ValueError('attn_mask must be None in the attentions that are recorded, as in DETR')
    queries, keys = (x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2).float() for x in (query, key))
    return DenseAttention(queries / queries.shape[-1] ** 0.5, keys, key_padding_mask, bias)
