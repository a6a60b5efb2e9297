"""Layers of the transformer for inference: packed weights, and as many cells at a time as the cache holds."""

from collections.abc import Iterator

import torch
from mmcv.cnn.bricks.wrappers import Linear as MMCVLinear
from torch import Tensor, nn

from mmdet_ddetr.layers import FFN, DeformableEncoderLayer, MSDeformAttn, MultiheadAttention
from mmdet_ddetr.layers.ms_deform_attn import spread
from mmdet_ddetr.ops import host_shapes, ms_deform_attn_fused

from .products import Linear, activation_of

ROWS = 1024  # cells of a block for each thread: the hidden layer of an FFN then stays in its cache


def fuse_transformer(module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """As :func:`fuse_convolutions`, of what encoders, decoders and heads are made of."""
    if type(module) in (nn.Linear, MMCVLinear):
        return Linear(module.weight, module.bias, dtype)
    if type(module) is FFN and _is_plain(module):
        return FusedFFN(module, dtype)
    if type(module) is MultiheadAttention:
        return FusedMultiheadAttention(module, dtype)
    if type(module) is MSDeformAttn:
        return FusedMSDeformAttn(module, dtype)
    if type(module) is DeformableEncoderLayer:
        attention, ffn = module.self_attn, module.ffn
        is_plain = type(attention) is MSDeformAttn and attention.batch_first and type(ffn) is FFN and _is_plain(ffn)
        if is_plain and attention.value_proj.weight.is_cpu:
            return EncoderLayer(module, dtype)
    return None


def blocks(rows: Tensor) -> Iterator[slice]:
    """Of a processor's cells; a GPU takes all at once."""
    count = len(rows)
    step = ROWS * torch.get_num_threads() if rows.is_cpu else max(count, 1)
    return (slice(start, start + step) for start in range(0, max(count, 1), step))


def _is_plain(ffn: FFN) -> bool:
    """Whether an FFN is two layers with ReLU and residual."""
    return (
        ffn.num_fcs == 2
        and ffn.add_identity
        and isinstance(ffn.gamma2, nn.Identity)
        and any(isinstance(part, nn.ReLU) for part in ffn.layers[0])
    )


class FusedFFN(nn.Module):
    """``FFN`` of two layers."""

    def __init__(self, ffn: FFN, dtype: torch.dtype):
        super().__init__()
        (first, *rest), last = ffn.layers[0], ffn.layers[1]
        relu = next(part for part in rest if isinstance(part, nn.ReLU))
        self.first = Linear(first.weight, first.bias, dtype, activation_of(relu))
        self.last = Linear(last.weight, last.bias, dtype)

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """x, identity [..., C]; identity is what the residual adds, None: x."""
        rows, identity = (y.flatten(0, -2) for y in (x, x if identity is None else identity))
        outputs = [self.last(self.first(rows[block]), add=identity[block]) for block in blocks(rows)]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).view(x.shape)


class FusedMSDeformAttn(nn.Module):
    """``MSDeformAttn``."""

    def __init__(self, attention: MSDeformAttn, dtype: torch.dtype):
        super().__init__()
        self.embed_dims = attention.embed_dims
        self.batch_first = attention.batch_first
        self.num_heads, self.num_levels, self.num_points = (
            attention.num_heads,
            attention.num_levels,
            attention.num_points,
        )
        for name in ('sampling_offsets', 'attention_weights', 'value_proj', 'output_proj'):
            layer = getattr(attention, name)
            setattr(self, name, Linear(layer.weight, layer.bias, dtype))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: list[tuple[int, int]] | None = None,
        **kwargs,
    ) -> Tensor:  # [B, Q, C]
        """See ``MSDeformAttn.forward``."""
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value, identity = (x.transpose(0, 1) for x in (query, value, identity))
        output = self.attend(
            query, self.project(value, key_padding_mask), host_shapes(spatial_shapes), reference_points, identity
        )
        return output if self.batch_first else output.transpose(0, 1)

    def project(self, value: Tensor, key_padding_mask: Tensor | None) -> Tensor:  # [B, S, C] -> [B, S, M, D]
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill_(key_padding_mask[..., None], 0.0)
        return value.unflatten(-1, (self.num_heads, -1))

    def attend(
        self,
        query: Tensor,  # [B, Q, C], with positions
        value: Tensor,  # [B, S, M, D]
        spatial_shapes: list[tuple[int, int]],
        reference_points: Tensor,  # [B, Q, L, 2 or 4]
        identity: Tensor,  # [B, Q, C]
    ) -> Tensor:  # [B, Q, C]
        B, Q, _ = query.shape
        M, L, K = self.num_heads, self.num_levels, self.num_points
        output = ms_deform_attn_fused(
            value,
            spatial_shapes,
            spread(reference_points, (B, Q, L)),
            self.sampling_offsets(query).view(B, Q, M, L, K, 2),
            self.attention_weights(query).view(B, Q, M, L * K),
        )
        return self.output_proj(output, add=identity)


class FusedMultiheadAttention(MultiheadAttention):
    """``MultiheadAttention`` with packed weights."""

    def __init__(self, attention: MultiheadAttention, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.__dict__.update(attention.__dict__)
        weights, biases = attention.attn.in_proj_weight.chunk(3), attention.attn.in_proj_bias
        biases = (None, None, None) if biases is None else biases.chunk(3)
        self.projections = nn.ModuleList(Linear(*pair, dtype) for pair in zip(weights, biases))
        out_proj = attention.attn.out_proj
        self.attn.out_proj = Linear(out_proj.weight, out_proj.bias, dtype)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        return tuple(projection(x) for projection, x in zip(self.projections, (query, key, value)))


class EncoderLayer(nn.Module):
    """``DeformableEncoderLayer`` by blocks of cells: but for the values, each cell depends on itself alone."""

    def __init__(self, layer: DeformableEncoderLayer, dtype: torch.dtype):
        super().__init__()
        self.embed_dims = layer.embed_dims
        self.self_attn = FusedMSDeformAttn(layer.self_attn, dtype)
        self.ffn = FusedFFN(layer.ffn, dtype)
        self.norms = layer.norms

    def forward(
        self,
        query: Tensor,  # [B, S, C]
        query_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        spatial_shapes: list[tuple[int, int]],
        reference_points: Tensor,  # [B, S, L, 2]
        **kwargs,
    ) -> Tensor:  # [B, S, C]
        B, S, _ = query.shape
        attention = self.self_attn
        query = query.to(attention.value_proj.dtype)
        value = attention.project(query, key_padding_mask)
        reference_points = spread(reference_points, (B, S, attention.num_levels))
        output = torch.empty_like(query)
        images = max(1, ROWS * torch.get_num_threads() // max(S, 1))  # small ones together
        for image in (slice(first, first + images) for first in range(0, B, images)):
            for cells in blocks(query[0]):
                x = query[image, cells]
                x = attention.attend(
                    x + query_pos[image, cells],
                    value[image],
                    spatial_shapes,
                    reference_points[image, cells],
                    x,
                )
                output[image, cells] = self.norms[1](self.ffn(self.norms[0](x)))
        return output
