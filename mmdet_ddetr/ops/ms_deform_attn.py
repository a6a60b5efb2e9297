"""Multi-scale deformable attention: the public functions over the ops of ``torch.ops.mmdet_ddetr``."""

from collections.abc import Sequence

from torch import Tensor

from . import reference
from ._checks import check_ms_deform_attn, check_ms_deform_attn_fused, compute_dtype
from ._register import AttentionOp, pairs

SpatialShapes = Tensor | Sequence[tuple[int, int]]


def host_shapes(spatial_shapes: SpatialShapes) -> list[tuple[int, int]]:
    """(H, W) per level as Python ints. A tensor on an accelerator costs one sync here: pass ints to avoid it."""
    return pairs(_flat(spatial_shapes))


def _flat(spatial_shapes: SpatialShapes) -> list[int]:
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    try:
        flat = [n for H, W in spatial_shapes for n in (H, W)]
    except (TypeError, ValueError):
        raise ValueError(f'spatial_shapes must hold (H, W) of each level, got {spatial_shapes}') from None
    if Tensor in map(type, flat):  # torch.jit.trace makes tensors of sizes that come from a shape
        flat = [int(n) for n in flat]
    return flat


def ms_deform_attn(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: SpatialShapes,  # (H, W) per level
    sampling_locations: Tensor,  # [B, Q, M, L, K, 2]
    attention_weights: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M*D]
    """Weighted sum of bilinear samples over all levels and points (Deformable DETR, eq. 3).

    Any size may be 0. A level has at most 2^24 rows and columns (2^31 - 1 where value is fp64) and all levels together
    2^31 - 1 cells. Differentiable any number of times and in both modes; the first backward is
    compiled, what lies beyond is plain PyTorch.

    Args:
        value: fp64, fp32, fp16 or bf16 features of all levels, concatenated along S in the order of ``spatial_shapes``,
            rows first.
        spatial_shapes: (H, W) of each level, as Python ints or as an int tensor [L, 2] (one sync on an accelerator).
        sampling_locations: (x, y) in the padded map, 0.0 = its near edge, 1.0 = its far edge, as ``grid_sample`` with
            ``align_corners=False``; what lies outside counts as zero. Keep it in fp32 beside a 16-bit value: bf16 has
            8 bits, too few to tell the cells of a 257-cell row apart.
        attention_weights: weight of each sample, as a rule a softmax over L*K.

    Returns:
        The sums in ``value``'s dtype. Coordinates and sums are computed in fp32 (fp64 where value is fp64). Bitwise the
        same for any number of CPU threads; so is the gradient, on CUDA under ``torch.use_deterministic_algorithms``.
        Exactly at the centre of a row or column of cells the derivative with respect to the location jumps, and
        rounding decides which of the two one-sided ones it is: not always the same in the compiled op and in plain
        PyTorch.

    Raises:
        RuntimeError: an argument's shape, dtype or device does not fit.
    """
    points = cast_points(value, sampling_locations, attention_weights)
    return _OP.forward(value, _flat(spatial_shapes), *points)


def ms_deform_attn_fused(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: SpatialShapes,  # (H, W) per level
    reference_points: Tensor,  # [B, Q, L, 2 or 4]
    sampling_offsets: Tensor,  # [B, Q, M, L, K, 2]
    attention_logits: Tensor,  # [B, Q, M, L*K]
) -> Tensor:  # [B, Q, M*D]
    """``ms_deform_attn`` from what the linear layers give: softmax and location arithmetic inside, in fp32.

    Neither the sampling locations nor the attention weights exist in memory.

    Args:
        value: as for ``ms_deform_attn``.
        spatial_shapes: as for ``ms_deform_attn``.
        reference_points: in each level's map, 1.0 = its far edge: (cx, cy), or a box (cx, cy, w, h).
        sampling_offsets: from the reference point in cells of the level; from a box's centre in halves of its size,
            divided by K.
        attention_logits: the softmax over L*K is the weight of each sample.

    Returns:
        As ``ms_deform_attn``.

    Raises:
        RuntimeError: an argument's shape, dtype or device does not fit.
    """
    points = cast_fused_points(value, reference_points, sampling_offsets, attention_logits)
    return _FUSED_OP.forward(value, _flat(spatial_shapes), *points)


def cast_points(value: Tensor, *points: Tensor) -> tuple[Tensor, ...]:
    """points in the dtypes that the kernels take: one and the same, value's or the one value is computed in."""
    dtype = points[0].dtype
    compute = compute_dtype(value.dtype)
    if dtype in (value.dtype, compute) and all(tensor.dtype == dtype for tensor in points[1:]):
        return points
    return tuple(tensor.to(compute) for tensor in points)


def cast_fused_points(value: Tensor, reference_points: Tensor, *points: Tensor) -> tuple[Tensor, ...]:
    return reference_points.to(compute_dtype(value.dtype)), *cast_points(value, *points)


_OP = AttentionOp(
    'ms_deform_attn',
    check=check_ms_deform_attn,
    reference=reference.ms_deform_attn,
    differentiable=reference.ms_deform_attn_by_gather,
    cast=cast_points,
)
_FUSED_OP = AttentionOp(
    'ms_deform_attn_fused',
    check=check_ms_deform_attn_fused,
    reference=reference.ms_deform_attn_fused,
    differentiable=reference.ms_deform_attn_fused_by_gather,
    cast=cast_fused_points,
    optional_grads=1,  # reference_points: often constants, and their gradient is a sum over heads and points
)
_OP.register()
_FUSED_OP.register()
