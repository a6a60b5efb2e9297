"""Records what the queries of a prediction look at."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from torch import Tensor, nn

from mmdet_ddetr.layers import (
    DotProductAttention,
    MSDeformAttn,
    OwnLevelAttention,
    OwnLevelDeformAttn,
    RowColumnProduct,
    SemanticAlignedAttention,
    SpatiallyModulatedAttention,
)
from mmdet_ddetr.ops import host_shapes
from mmdet_ddetr.ops.reference import sampling_locations_of

from . import convolution, dat, roi_pool

ATTENTION_OF = dict(encoder='self_attn', decoder='cross_attn')


@dataclass(frozen=True)
class SampledAttention:
    """One deformable attention: the points that every query sampled, and their weights."""

    locations: Tensor  # [B, Q, M, L, K, 2], (x, y) in the padded map of the level, 1.0 = its far edge
    weights: Tensor  # [B, Q, M, L, K], a softmax over L*K
    reference_points: Tensor  # [B, Q, L, 2 or 4], (cx, cy) or (cx, cy, w, h), as the locations

    def weights_of_cells(self, image: int, query: int, spatial_shapes: list[tuple[int, int]]) -> Tensor:  # [M, S]
        """What each cell of the levels counts, the four around a point together as much as the point."""
        levels = []
        for level, (H, W) in enumerate(spatial_shapes):
            size = self.locations.new_tensor([W, H])
            place = self.locations[image, query, :, level] * size - 0.5  # [M, K, 2], in cells, their centres at 0
            x, y = (
                (1 - (place[..., axis, None] - torch.arange(cells, device=place.device)).abs()).clamp(min=0)
                for axis, cells in enumerate((W, H))
            )
            weights = self.weights[image, query, :, level]  # [M, K]
            levels.append(torch.einsum('mk, mkh, mkw -> mhw', weights, y, x).flatten(1))
        return torch.cat(levels, 1)


@dataclass(frozen=True)
class DenseAttention:
    """One multi-head attention. Its S x S weights would fill the memory: they are computed for the query asked for."""

    queries: Tensor  # [B, M, Q, D], projected, divided by sqrt(D)
    keys: Tensor  # [B, M or 1, S, D], projected
    padding: Tensor | None  # [B, S], True = padding
    bias: Tensor | None = None  # [B, M or 1, Q, S], added to the products
    sizes: tuple[int, ...] | None = None  # cells of each level that has a softmax of its own; None: one for all cells
    level_weights: Tensor | None = None  # [B or 1, Q, L], what the softmax of each level is multiplied by
    by_axis: bool = False  # an attention over the columns times one over the rows: the sums of the weights
    shape: tuple[int, int] | None = None  # (H, W) of the one level that the keys are of; None: they are of all
    points: Tensor | None = None  # [B, Q, M, 2], salient points (SAM-DETR), (x, y) in [0, 1] of the image
    boxes: Tensor | None = None  # [B, Q, 4], the boxes that these lie in, (cx, cy, w, h), as the points

    def weights(self, image: int, query: int) -> Tensor:  # [M, S]
        """What each key counts, for one query of one image of the batch."""
        logits = (self.keys[image] @ self.queries[image, :, query, :, None]).squeeze(-1)
        if self.bias is not None:
            logits = logits + self.bias[image, :, query]
        if self.padding is not None:
            logits = logits.masked_fill(self.padding[image], float('-inf'))
        if self.sizes is None:
            return logits.softmax(-1)
        return self._share(torch.cat([level.softmax(-1) for level in logits.split(self.sizes, -1)], -1), image, query)

    def gaussians(self, image: int, query: int) -> Tensor:  # [M, S]
        """What the bias multiplies each weight by, before the softmax: at most 1."""
        return self._share(self.bias[image, :, query].exp(), image, query)

    def _share(self, weights: Tensor, image: int, query: int) -> Tensor:  # [M, S]
        """Multiply each level's cells by the weight that the query gives that level."""
        if self.level_weights is None:
            return weights
        shares = self.level_weights[image if len(self.level_weights) > 1 else 0, query]  # [L]
        return torch.cat([share * level for share, level in zip(shares, weights.split(self.sizes, -1))], -1)


@dataclass
class Recording:
    """What ``record`` gathers of the latest forward pass. What a detector does not have is empty."""

    encoder: list[SampledAttention] | list[DenseAttention]  # self-attention per layer that has one
    decoder: list[SampledAttention] | list[DenseAttention]  # cross-attention per layer
    spatial_shapes: list[tuple[int, int]] = field(default_factory=list)  # (H, W) of the maps that the decoder looks at
    valid_ratios: Tensor | None = None  # [B, L, 2], share of each map's width and height that is image
    head_outputs: tuple = ()  # logits [layers, B, Q, classes], boxes [layers, B, Q, 4]
    convolutions: list[convolution.SampledConv] = field(default_factory=list)  # in the order of computing
    deformed: list[dat.DeformedAttention] = field(default_factory=list)  # of DAT
    pools: list[roi_pool.PooledRoIs] = field(default_factory=list)  # of deformable RoI pooling
    regions: list[roi_pool.Regions] = field(default_factory=list)  # of each box head beside it


def attentions(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The attentions of a detector that can be explained: the encoder's self-, the decoder's cross-attentions.

    An encoder may do without, as that of convolutions in SMCA's archive.

    Raises:
        TypeError: the model has no DETR's encoder and decoder, or attends otherwise.
    """
    found = {}
    for part, name in ATTENTION_OF.items():
        layers = getattr(getattr(model, part, None), 'layers', None)
        if layers is None:
            raise TypeError(
                f'model must have a transformer {part} with layers, as DETR has, or deformable convolutions or RoI '
                f'pooling, or the backbone DAT; {type(model).__name__} has none of these'
            )
        found[part] = [getattr(layer, name, None) for layer in layers]
        if part == 'encoder':
            found[part] = [attention for attention in found[part] if hasattr(attention, 'num_heads')]
        for attention in found[part]:
            if not (_is_deformable(attention) or _is_dense(attention)):
                raise TypeError(
                    f'model: the {name} in the {part} of {type(model).__name__} must be MSDeformAttn, '
                    f'MultiheadAttention or another of this package that samples points or weighs cells, '
                    f'got {type(attention).__name__}'
                )
    return found


def check_recordable(model: nn.Module) -> None:
    """Raises a TypeError if ``record`` finds nothing in a detector."""
    with record(model):
        pass


def is_deformable(model: nn.Module) -> bool:
    """Whether all attentions that ``record`` records sample points."""
    return all(_is_deformable(attention) for layers in attentions(model).values() for attention in layers)


def _is_deformable(attention: nn.Module) -> bool:
    return isinstance(attention, MSDeformAttn | MultiScaleDeformableAttention) and not isinstance(
        attention, OwnLevelDeformAttn
    )


def _is_dense(attention: nn.Module) -> bool:
    return _product_of(attention) is not None or isinstance(getattr(attention, 'attn', None), nn.MultiheadAttention)


def _product_of(attention: nn.Module) -> DotProductAttention | RowColumnProduct | None:
    """The product inside of the attentions here."""
    kinds = DotProductAttention | RowColumnProduct
    return next((module for module in attention.children() if isinstance(module, kinds)), None)


def _what_to_read(attention: nn.Module):
    """The module whose arguments tell what the queries look at, and the function that reads them."""
    if _is_deformable(attention):
        return attention, _sampled
    if isinstance(attention, SpatiallyModulatedAttention):
        return attention, _modulated
    if isinstance(attention, OwnLevelAttention):
        return attention, _own_level
    if isinstance(attention, SemanticAlignedAttention):
        return attention, _aligned
    product = _product_of(attention)
    if isinstance(product, RowColumnProduct):
        return product, _row_column
    return (attention.attn, _dense) if product is None else (product, _product)


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record what a detector samples in whatever it computes inside the ``with``.

    That is: the attentions of a DETR or Deformable DETR, deformable convolutions and RoI poolings, DAT's attentions.
    Results stay what they are, bit for bit: hooks read the inputs of each module and compute locations and weights
    once more, because the fused operators never hold them. Outside the ``with`` the model has no hook and no cost.

    Args:
        model: detector of any kind that has one of these; mmdet's own with mmcv's modules as well.

    Yields:
        The recording of the latest forward pass, on the model's device; a full-size Deformable DETR takes 200 MB.

    Raises:
        TypeError: the model has none of these.
    """
    recording = Recording([], [])
    handles = convolution.watch(model, recording.convolutions) + dat.watch(model, recording.deformed)
    handles += roi_pool.watch(model, recording.pools, recording.regions)
    try:
        handles += _watch_attentions(model, recording)
    except TypeError:
        if not handles:
            raise
    if hasattr(model, 'backbone'):
        handles.append(model.backbone.register_forward_pre_hook(_start_hook(recording), prepend=True))
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _start_hook(recording: Recording):
    def hook(backbone, args):
        for calls in (recording.convolutions, recording.deformed, recording.pools, recording.regions):
            calls.clear()

    return hook


def _watch_attentions(model: nn.Module, recording: Recording) -> list:
    found = attentions(model)
    recording.encoder, recording.decoder = ([None] * len(found[part]) for part in ('encoder', 'decoder'))
    first_level = 0 if is_deformable(model) else -1  # DETR takes the last map alone
    handles = [
        model.encoder.register_forward_pre_hook(_geometry_hook(recording), with_kwargs=True),
        model.decoder.register_forward_pre_hook(_geometry_hook(recording), with_kwargs=True),
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
    return handles


def _geometry_hook(recording: Recording):
    def hook(coder, args, kwargs):
        recording.valid_ratios = kwargs.get('valid_ratios', recording.valid_ratios)
        recording.spatial_shapes = kwargs.get('spatial_shapes', recording.spatial_shapes)

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
    return DenseAttention(*_projected(module, query, key), key_padding_mask)


def _own_level(
    module: OwnLevelAttention,
    query: Tensor,  # [B, S, C]
    query_pos: Tensor,  # [B, S, C]
    key_padding_mask: Tensor | None,
    spatial_shapes: list[tuple[int, int]] | None,
    **others,
) -> DenseAttention:
    projected = _projected(module.attn, query + query_pos, query + query_pos)
    if spatial_shapes is None:
        return DenseAttention(*projected, key_padding_mask)
    sizes = tuple(H * W for H, W in spatial_shapes)
    own = torch.eye(len(sizes)).repeat_interleave(torch.tensor(sizes), 0)  # [S, L], the level of each cell
    return DenseAttention(*projected, key_padding_mask, sizes=sizes, level_weights=own[None].to(query.device))


def _modulated(
    module: SpatiallyModulatedAttention,
    query: Tensor,  # [B, Q, C]
    key: Tensor,  # [B, S, C]
    query_pos: Tensor,
    key_pos: Tensor,
    key_padding_mask: Tensor | None,
    reference_points: Tensor,  # [B, Q, 2]
    spatial_shapes: list[tuple[int, int]],
    map_sizes: Tensor,  # [B or 1, L, 2]
    place: Tensor | None,
    **others,
) -> DenseAttention:
    place = query + query_pos if place is None else place
    bias = torch.cat(module.log_gaussians(place, reference_points, spatial_shapes, map_sizes), -1)
    projected = _projected(module.attn, query + query_pos, key + key_pos)
    if module.level_logits is None:
        return DenseAttention(*projected, key_padding_mask, bias)
    sizes = tuple(H * W for H, W in spatial_shapes)
    return DenseAttention(*projected, key_padding_mask, bias, sizes, module.level_weights(place))


def _projected(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [B, M, Q, D], divided by sqrt(D), and keys [B, M, S, D]."""
    bias = (None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[:2]
    if module.in_proj_weight is not None:
        weight = module.in_proj_weight.chunk(3)[:2]
    else:
        weight = module.q_proj_weight, module.k_proj_weight
    queries, keys = (
        F.linear(x, w, b).unflatten(-1, (module.num_heads, -1)).transpose(1, 2).float()
        for x, w, b in zip((query, key), weight, bias)
    )
    return queries / queries.shape[-1] ** 0.5, keys


def _aligned(
    module: SemanticAlignedAttention,
    query: Tensor,  # [B, Q, C]
    key: Tensor,  # [B, H*W, C]
    value: Tensor,
    key_pos: Tensor,
    reference_points: Tensor,  # [B, Q, 4]
    spatial_shapes: list[tuple[int, int]],  # one
    valid_ratios: Tensor,
    key_padding_mask: Tensor | None,
    **others,
) -> DenseAttention:
    inputs = query, key, value, key_pos, reference_points, spatial_shapes, valid_ratios
    queries, keys, points, bias = module.align(*inputs)
    queries, keys = queries.transpose(1, 2).float() / queries.shape[-1] ** 0.5, keys[:, None].float()
    of_boxes = dict(shape=tuple(spatial_shapes[0]), points=points.float(), boxes=reference_points.float())
    return DenseAttention(queries, keys, key_padding_mask, bias, **of_boxes)


def _product(
    module: DotProductAttention,
    query: Tensor,  # [B, Q, M*D]
    key: Tensor,  # [B, S, M*D], or [B, S, D]
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    bias: Tensor | None,
    **others,
) -> DenseAttention:
    if attn_mask is not None:
        raise ValueError('attn_mask must be None in the attentions that are recorded, as in DETR')
    D = query.shape[-1] // module.num_heads
    queries, keys = (x.unflatten(-1, (-1, D)).transpose(1, 2).float() for x in (query, key))
    return DenseAttention(queries / queries.shape[-1] ** 0.5, keys, key_padding_mask, bias)


def _row_column(
    module: RowColumnProduct,
    query_x: Tensor,  # [B, Q, C]
    query_y: Tensor,  # [B, Q, C]
    key_x: Tensor,  # [B, W, C]
    key_y: Tensor,  # [B, H, C]
    padding_x: Tensor | None,
    padding_y: Tensor | None,
    **others,
) -> DenseAttention:
    joined = module.joined(query_x, query_y, key_x, key_y, padding_x, padding_y)
    return replace(_product(module.attention, *joined, attn_mask=None, bias=None), by_axis=True)
