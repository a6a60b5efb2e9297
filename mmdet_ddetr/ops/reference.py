"""The specification of the operators in plain PyTorch.

Every native kernel is tested against these functions, and they serve where the extension is not built. Names of the
dimensions: B batch, S cells of all levels together, M heads, D channels a head, Q queries, L levels, K points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair


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
    _, Q, _, _, K, _ = sampling_locations.shape
    dtype = torch.promote_types(value.dtype, torch.float32)
    grids = 2 * sampling_locations.to(dtype) - 1
    weights = attention_weights.to(dtype)
    output = value.new_zeros(B * M, D, Q, dtype=dtype)
    for level, (cells, (H, W)) in enumerate(zip(_levels(value, spatial_shapes), spatial_shapes)):
        if cells.numel() * Q * K == 0:
            continue  # grid_sample refuses empty maps and grids
        samples = F.grid_sample(
            cells.to(dtype).permute(0, 2, 3, 1).reshape(B * M, D, H, W),
            grids[:, :, :, level].transpose(1, 2).reshape(B * M, Q, K, 2),
            mode='bilinear',
            padding_mode='zeros',
            align_corners=False,
        )  # [B*M, D, Q, K]
        weight = weights[:, :, :, level].transpose(1, 2).reshape(B * M, 1, Q, K)
        output = output + (samples * weight).sum(-1)
    return output.view(B, M * D, Q).transpose(1, 2).to(value.dtype).contiguous()


def ms_deform_attn_by_gather(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: list[tuple[int, int]],  # (H, W) per level
    sampling_locations: Tensor,  # [B, Q, M, L, K, 2]
    attention_weights: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M*D]
    """``ms_deform_attn`` from indexing and arithmetic alone.

    Slower than with ``grid_sample``, but it can be differentiated any number of times, forwards too, and vmapped.
    """
    B, _, M, D = value.shape
    _, Q, _, _, K, _ = sampling_locations.shape
    dtype = torch.promote_types(value.dtype, torch.float32)
    locations = sampling_locations.to(dtype).transpose(1, 2)  # [B, M, Q, L, K, 2]
    weights = attention_weights.to(dtype).transpose(1, 2)
    output = locations.new_zeros(B, M, Q, D)
    for level, (cells, (H, W)) in enumerate(zip(_levels(value, spatial_shapes), spatial_shapes)):
        x = locations[..., level, :, 0] * W - 0.5
        y = locations[..., level, :, 1] * H - 0.5
        cells = cells.to(dtype).transpose(1, 2)  # [B, M, H*W, D]
        if H * W == 0:
            continue
        x0, y0 = x.detach().floor(), y.detach().floor()
        for xi, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            for yi, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
                inside = (xi >= 0) & (xi < W) & (yi >= 0) & (yi < H)
                index = (yi.clamp(0, H - 1) * W + xi.clamp(0, W - 1)).nan_to_num().long().reshape(B, M, Q * K, 1)
                corner = cells.gather(2, index.expand(-1, -1, -1, D)).reshape(B, M, Q, K, D)
                weight = torch.where(inside, wx * wy, 0 * (x + y)) * weights[..., level, :]
                output = output + (torch.where(inside[..., None], corner, 0) * weight[..., None]).sum(-2)
    return output.transpose(1, 2).reshape(B, Q, M * D).to(value.dtype)


def ms_deform_attn_fused(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: list[tuple[int, int]],  # (H, W) per level
    reference_points: Tensor,  # [B, Q, L, 2 or 4]
    sampling_offsets: Tensor,  # [B, Q, M, L, K, 2]
    attention_logits: Tensor,  # [B, Q, M, L*K]
) -> Tensor:  # [B, Q, M*D]
    """``ms_deform_attn`` from what the linear layers give: softmax and location arithmetic inside, in fp32."""
    return ms_deform_attn(
        value, spatial_shapes, *_unfused(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    )


def ms_deform_attn_fused_by_gather(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: list[tuple[int, int]],  # (H, W) per level
    reference_points: Tensor,  # [B, Q, L, 2 or 4]
    sampling_offsets: Tensor,  # [B, Q, M, L, K, 2]
    attention_logits: Tensor,  # [B, Q, M, L*K]
) -> Tensor:  # [B, Q, M*D]
    """``ms_deform_attn_fused`` on top of ``ms_deform_attn_by_gather``."""
    return ms_deform_attn_by_gather(
        value, spatial_shapes, *_unfused(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    )


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
        # an empty map has no cells to count in; nothing is sampled there
        sizes = offsets.new_tensor([(max(W, 1), max(H, 1)) for H, W in spatial_shapes])
        return reference + offsets / sizes.view(-1, 1, 2)
    K = sampling_offsets.shape[-2]
    return reference[..., :2] + offsets / K * reference[..., 2:] * 0.5


def _unfused(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> tuple[Tensor, Tensor]:  # [B, Q, M, L, K, 2], [B, Q, M, L, K]
    """Sampling locations and attention weights, in the dtype that ``value`` is computed with."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    locations = sampling_locations_of(spatial_shapes, reference_points.to(dtype), sampling_offsets.to(dtype))
    return locations, attention_logits.to(dtype).softmax(-1).view(sampling_offsets.shape[:-1])


def _levels(value: Tensor, spatial_shapes: list[tuple[int, int]]) -> tuple[Tensor, ...]:  # [B, H*W, M, D] each
    return value.split([H * W for H, W in spatial_shapes], 1)


def check_ms_deform_attn(
    value: Tensor, spatial_shapes: list[int], sampling_locations: Tensor, attention_weights: Tensor
):
    """The argument checks of csrc/ms_deform_attn.h, with its messages; spatial_shapes is flat."""
    _check_value(value, spatial_shapes)
    _check_points(value, spatial_shapes, 'sampling_locations', sampling_locations)
    B, Q, M, L, K, _ = sampling_locations.shape
    _check(
        attention_weights.shape == (B, Q, M, L, K),
        f'attention_weights must be [B, Q, M, L, K] = {[B, Q, M, L, K]}, got {list(attention_weights.shape)}',
    )


def check_ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
):
    """The argument checks of csrc/ms_deform_attn.h, with its messages; spatial_shapes is flat."""
    _check_value(value, spatial_shapes)
    _check_points(value, spatial_shapes, 'sampling_offsets', sampling_offsets)
    B, Q, M, L, K, _ = sampling_offsets.shape
    _check(
        attention_logits.shape == (B, Q, M, L * K),
        f'attention_logits must be [B, Q, M, L*K] = {[B, Q, M, L * K]}, got {list(attention_logits.shape)}',
    )
    _check(
        reference_points.shape in ((B, Q, L, 2), (B, Q, L, 4)),
        f'reference_points must be [B, Q, L, 2 or 4] = [{B}, {Q}, {L}, 2 or 4], got {list(reference_points.shape)}',
    )


def _check_value(value: Tensor, spatial_shapes: list[int]):
    _check(value.dim() == 4, f'value must be [B, S, M, D], got {list(value.shape)}')
    _check(value.is_floating_point(), f'value must be fp64, fp32, fp16 or bf16, got {value.dtype}')
    cells = sum(H * W for H, W in zip(spatial_shapes[::2], spatial_shapes[1::2]))
    _check(
        cells == value.shape[1],
        f'spatial_shapes give {cells} cells, but value {list(value.shape)} has {value.shape[1]}',
    )


def _check_points(value: Tensor, spatial_shapes: list[int], name: str, points: Tensor):
    (B, _, M, _), L = value.shape, len(spatial_shapes) // 2
    shape = points.shape
    _check(
        points.dim() == 6 and (shape[0], shape[2], shape[3], shape[5]) == (B, M, L, 2),
        f'{name} must be [B, Q, M, L, K, 2] = [{B}, Q, {M}, {L}, K, 2], got {list(shape)}',
    )


def _check(ok: bool, message: str):
    if not ok:
        raise RuntimeError(message)


def sigmoid_focal_loss(
    logits: Tensor,  # [N, C]
    labels: Tensor,  # [N]
    alpha: float,
    gamma: float,
    sum_classes: bool = False,
) -> Tensor:  # [N, C], or [N] if sum_classes
    """Focal loss of every logit (RetinaNet, eq. 5), in fp32 (fp64 where ``logits`` is), from log-sigmoid."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = labels[:, None] == torch.arange(x.shape[1], device=x.device)
    y = torch.where(target, -x, x)  # sigmoid(y) is the probability of the wrong answer
    # not sigmoid(y) ** gamma, whose derivative is inf * 0 for gamma < 1 where sigmoid(y) is 0
    loss = torch.where(target, alpha, 1 - alpha) * (gamma * F.logsigmoid(y)).exp() * -F.logsigmoid(-y)
    return loss.sum(1) if sum_classes else loss


def check_sigmoid_focal_loss(logits: Tensor, labels: Tensor, gamma: float):
    """The argument checks of csrc/sigmoid_focal_loss.h, with its messages."""
    _check(logits.dim() == 2, f'logits must be [N, C], got {list(logits.shape)}')
    _check(logits.is_floating_point(), f'logits must be fp64, fp32, fp16 or bf16, got {logits.dtype}')
    _check(labels.shape == logits.shape[:1], f'labels must be [N] = {list(logits.shape[:1])}, got {list(labels.shape)}')
    _check(labels.dtype == torch.int64, f'labels must be int64, got {labels.dtype}')
    _check(gamma >= 0, f'gamma must not be negative, got {gamma}')


def dropout(input: Tensor, p: float, seed: Tensor) -> Tensor:
    """Zero the elements whose 31-bit number is below p * 2^31 and divide the others by 1 - p.

    The number is lowbias32 (C. Wellons, https://github.com/skeeto/hash-prospector), twice, of the element's place in
    its block of 2^14, keyed with both halves of the 64 bits that SplitMix64 (Steele et al., 2014) gives the block.
    """
    index = torch.arange(input.numel())
    key = seed + (index // 2**14 + 1) * (0x9E3779B97F4A7C15 - 2**64)  # int64 wraps around as uint64 does
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key = (key ^ _shift_right(key, shift)) * (factor - 2**64)
    key = key ^ _shift_right(key, 31)
    bits = _lowbias32(_lowbias32(index % 2**14 ^ key & 0xFFFFFFFF) ^ _shift_right(key, 32))
    dropped = (bits // 2 < round(p * 2**31)).view(input.shape)
    scaled = input.to(torch.promote_types(input.dtype, torch.float32)) * (1 / (1 - p) if p < 1 else 0)
    return torch.where(dropped, 0, scaled).to(input.dtype)


def _lowbias32(x: Tensor) -> Tensor:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor & 0xFFFFFFFF
    return x ^ x >> 16


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Of 64 bits without a sign."""
    return x >> bits & 2 ** (64 - bits) - 1


def deform_conv2d(
    input: Tensor,  # [B, C, H, W]
    offset: Tensor,  # [B, G*T*2, Ho, Wo]; G offset groups, T = kh*kw taps
    weight: Tensor,  # [C_out, C/groups, kh, kw]
    bias: Tensor | None = None,  # [C_out]
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,  # [B, G*T, Ho, Wo]
) -> Tensor:  # [B, C_out, Ho, Wo]
    """Deformable convolution (DCN, eq. 2; with ``mask`` DCNv2, eq. 1), a tap after the other.

    Each tap is a 1 x 1 convolution of the map that its displaced samples make. ``ops.deform_conv2d`` documents the
    arguments.
    """
    (B, C, H, W), (_, C_group, kh, kw) = input.shape, weight.shape
    (sy, sx), (py, px), (dy, dx) = _pair(stride), _pair(padding), _pair(dilation)
    *_, Ho, Wo = offset.shape
    dtype = torch.promote_types(input.dtype, torch.float32)
    G = offset.shape[1] // (2 * kh * kw)
    offset = offset.to(dtype).view(B * G, kh, kw, 2, Ho, Wo)
    cells = input.to(dtype).reshape(B * G, C // G, H, W)
    rows = torch.arange(Ho, dtype=dtype, device=input.device)[:, None] * sy - py
    columns = torch.arange(Wo, dtype=dtype, device=input.device) * sx - px
    output = input.new_zeros(B, len(weight), Ho, Wo, dtype=dtype)
    for u in range(kh):
        for v in range(kw):
            y = rows + u * dy + offset[:, u, v, 0]  # [B*G, Ho, Wo]
            x = columns + v * dx + offset[:, u, v, 1]
            grid = torch.stack([(2 * x + 1) / W - 1, (2 * y + 1) / H - 1], -1)
            samples = F.grid_sample(cells, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
            if mask is not None:
                samples = samples * mask.to(dtype).view(B * G, kh, kw, Ho, Wo)[:, u, v, None]
            tap = weight[:, :, u : u + 1, v : v + 1].to(dtype)
            output = output + F.conv2d(samples.view(B, C, Ho, Wo), tap, groups=C // C_group)
    return (output if bias is None else output + bias.to(dtype)[:, None, None]).to(input.dtype)
