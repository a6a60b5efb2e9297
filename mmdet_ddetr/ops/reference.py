"""The specification of the operators in plain PyTorch.

Every native kernel is tested against these functions, and they serve where the extension is not built. Names of the
dimensions: B batch, S cells of all levels together, M heads, D channels a head, Q queries, L levels, K points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: list[tuple[int, int]],  # (H, W) per level
    sampling_locations: Tensor,  # [B, Q, M, L, K, 2]
    attention_weights: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M*D]
    """Weighted sum of bilinear samples over all levels and points (Deformable DETR, eq. 3).

    Args:
        value: features of all levels, concatenated along S in the order of ``spatial_shapes``, rows first.
        spatial_shapes: (H, W) of each level as Python ints.
        sampling_locations: (x, y) in the padded map, 0.0 = its near edge, 1.0 = its far edge, as ``grid_sample`` with
            ``align_corners=False``; what lies outside counts as zero.
        attention_weights: weight of each sample, as a rule a softmax over L*K.

    Returns:
        The sums in ``value``'s dtype. Coordinates and sums are fp32 (fp64 where value is fp64).
    """
    B, _, M, D = value.shape
    _, Q, _, L, K, _ = sampling_locations.shape
    dtype = torch.promote_types(value.dtype, torch.float32)
    grids = 2 * sampling_locations.to(dtype) - 1
    weights = attention_weights.to(dtype)
    output = value.new_zeros(B * M, D, Q, dtype=dtype)
    for level, (map_of_level, (H, W)) in enumerate(zip(value.split([H * W for H, W in spatial_shapes], 1), spatial_shapes)):
        if H * W == 0:
            continue  # an empty map has nothing to sample
        samples = F.grid_sample(
            map_of_level.to(dtype).permute(0, 2, 3, 1).reshape(B * M, D, H, W),
            grids[:, :, :, level].transpose(1, 2).reshape(B * M, Q, K, 2),
            mode='bilinear',
            padding_mode='zeros',
            align_corners=False,
        )  # [B*M, D, Q, K]
        weight = weights[:, :, :, level].transpose(1, 2).reshape(B * M, 1, Q, K)
        output = output + (samples * weight).sum(-1)
    return output.view(B, M * D, Q).transpose(1, 2).to(value.dtype).contiguous()


def sampling_locations_of(
    spatial_shapes: list[tuple[int, int]],  # (H, W) per level
    reference_points: Tensor,  # [B, Q, L, 2 or 4]
    sampling_offsets: Tensor,  # [B, Q, M, L, K, 2]
) -> Tensor:  # [B, Q, M, L, K, 2]
    """Where the points lie: reference plus offset (official ``ms_deform_attn.py``).

    A 2-dim reference (cx, cy) takes offsets in cells of its level. A 4-dim reference (cx, cy, w, h) takes them in units
    of half the box, divided by K, so that the initial offsets of 1..K reach the box's edge.
    """
    dtype = torch.promote_types(sampling_offsets.dtype, torch.float32)
    reference = reference_points.to(dtype)[:, :, None, :, None, :]
    offsets = sampling_offsets.to(dtype)
    if reference_points.shape[-1] == 2:
        sizes = torch.tensor([(W, H) for H, W in spatial_shapes], dtype=dtype, device=offsets.device)
        return reference + offsets / sizes[:, None, :]
    K = sampling_offsets.shape[-2]
    return reference[..., :2] + offsets / K * reference[..., 2:] * 0.5


def ms_deform_attn_fused(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: list[tuple[int, int]],  # (H, W) per level
    reference_points: Tensor,  # [B, Q, L, 2 or 4]
    sampling_offsets: Tensor,  # [B, Q, M, L, K, 2]
    attention_logits: Tensor,  # [B, Q, M, L*K]
) -> Tensor:  # [B, Q, M*D]
    """``ms_deform_attn`` from what the linear layers give: softmax and location arithmetic inside, in fp32."""
    locations = sampling_locations_of(spatial_shapes, reference_points, sampling_offsets)
    logits = attention_logits.to(torch.promote_types(attention_logits.dtype, torch.float32))
    weights = logits.softmax(-1).view(sampling_offsets.shape[:-1])
    return ms_deform_attn(value, spatial_shapes, locations, weights)
