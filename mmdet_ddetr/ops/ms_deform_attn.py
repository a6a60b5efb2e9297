"""Multi-scale deformable attention: argument checks and the choice of the kernel."""

from collections.abc import Sequence

from torch import Tensor

from . import reference

SpatialShapes = Tensor | Sequence[tuple[int, int]]


def host_shapes(spatial_shapes: SpatialShapes) -> list[tuple[int, int]]:
    """(H, W) per level as Python ints. A tensor on an accelerator costs one sync here: pass ints to avoid it."""
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    return [(int(H), int(W)) for H, W in spatial_shapes]


def ms_deform_attn(value: Tensor, spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor):
    return reference.ms_deform_attn(value, host_shapes(spatial_shapes), sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
):
    return reference.ms_deform_attn_fused(
        value, host_shapes(spatial_shapes), reference_points, sampling_offsets, attention_logits
    )
