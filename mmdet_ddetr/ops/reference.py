"""The specification of the operators in plain PyTorch.

Every native kernel is tested against these functions, and they serve where the extension is not built. Names of the
dimensions: B batch, S cells of all levels together, M heads, D channels a head, Q queries, L levels, K points.
"""

from collections.abc import Callable, Sequence

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
    points = sampling_locations, attention_weights
    return _attend(_sample, value, spatial_shapes, points, _by_location(sampling_locations, value), attention_weights)


def ms_deform_attn_by_gather(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: list[tuple[int, int]],  # (H, W) per level
    sampling_locations: Tensor,  # [B, Q, M, L, K, 2]
    attention_weights: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M*D]
    """``ms_deform_attn`` from indexing and arithmetic alone.

    Slower than with ``grid_sample``, but it can be differentiated any number of times, forwards too, and vmapped.
    """
    points = sampling_locations, attention_weights
    return _attend(_gather, value, spatial_shapes, points, _by_location(sampling_locations, value), attention_weights)


def ms_deform_attn_fused(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: list[tuple[int, int]],  # (H, W) per level
    reference_points: Tensor,  # [B, Q, L, 2 or 4]
    sampling_offsets: Tensor,  # [B, Q, M, L, K, 2]
    attention_logits: Tensor,  # [B, Q, M, L*K]
) -> Tensor:  # [B, Q, M*D]
    """``ms_deform_attn`` from what the linear layers give: softmax and location arithmetic inside, in fp32."""
    points = reference_points, sampling_offsets, attention_logits
    coordinates, weights = _by_offset(*points[:2], value), _softmax(attention_logits, sampling_offsets, value)
    return _attend(_sample, value, spatial_shapes, points, coordinates, weights)


def ms_deform_attn_fused_by_gather(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: list[tuple[int, int]],  # (H, W) per level
    reference_points: Tensor,  # [B, Q, L, 2 or 4]
    sampling_offsets: Tensor,  # [B, Q, M, L, K, 2]
    attention_logits: Tensor,  # [B, Q, M, L*K]
) -> Tensor:  # [B, Q, M*D]
    """``ms_deform_attn_fused`` on top of ``ms_deform_attn_by_gather``."""
    points = reference_points, sampling_offsets, attention_logits
    coordinates, weights = _by_offset(*points[:2], value), _softmax(attention_logits, sampling_offsets, value)
    return _attend(_gather, value, spatial_shapes, points, coordinates, weights)


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


# --- coordinates: level, H, W -> x and y in cells, [B, Q, M, K] each --------------------------------------------------

Coordinates = Callable[[int, int, int], tuple[Tensor, Tensor]]


def _by_location(locations: Tensor, value: Tensor) -> Coordinates:  # [B, Q, M, L, K, 2]
    locations = locations.to(_compute_dtype(value))
    return lambda level, H, W: (locations[..., level, :, 0] * W - 0.5, locations[..., level, :, 1] * H - 0.5)


def _by_offset(
    references: Tensor, offsets: Tensor, value: Tensor
) -> Coordinates:  # [B, Q, L, 2 or 4], [B, Q, M, L, K, 2]
    references, offsets = references.to(_compute_dtype(value)), offsets.to(_compute_dtype(value))
    K = offsets.shape[-2]

    def axis(i: int, level: int, size: int) -> Tensor:
        reference, offset = references[:, :, None, None, level], offsets[..., level, :, i]
        if references.shape[-1] == 4:
            offset = 0.5 / max(K, 1) * reference[..., 2 + i] * size * offset
        return reference[..., i] * size - 0.5 + offset

    return lambda level, H, W: (axis(0, level, W), axis(1, level, H))


def _softmax(logits: Tensor, offsets: Tensor, value: Tensor) -> Tensor:  # [B, Q, M, L*K] -> [B, Q, M, L, K]
    return logits.to(_compute_dtype(value)).softmax(-1).view(offsets.shape[:-1])


def _compute_dtype(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


# --- samples ----------------------------------------------------------------------------------------------------------


def _attend(
    sample: Callable[..., Tensor],
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: list[tuple[int, int]],
    points: tuple[Tensor, ...],  # what coordinates and weights are made of
    coordinates: Coordinates,
    weights: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M*D]
    (B, S, M, D), (_, Q, _, _, K) = value.shape, weights.shape
    weights = weights.to(_compute_dtype(value))
    output = weights.new_zeros(B, Q, M, D)
    if not B * S * M * D * Q * K:  # nothing is sampled: the gradients are zero, but they are there
        output = output + sum(tensor[:0].sum() for tensor in (value, *points))
    for level, (cells, (H, W)) in enumerate(zip(_levels(value, spatial_shapes), spatial_shapes)):
        x, y = coordinates(level, H, W)
        weight = weights[..., level, :]
        output = output + (_outside_value(x, y) * weight).sum(-1, keepdim=True)
        if cells.numel() * Q * K:
            output = output + sample(cells.to(weights.dtype), H, W, x, y, weight)
    return output.reshape(B, Q, M * D).to(value.dtype)


def _sample(cells: Tensor, H: int, W: int, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:  # -> [B, Q, M, D]
    """Weighted sums of samples [B, Q, M, K] of a level [B, H*W, M, D]; zero where they do not touch the map.

    grid_sample takes x and y between -1 and 1 and multiplies by W and H again. The rounding may move a sample across
    the centre of a cell, where the derivative jumps; so may the compiled op's, which multiplies and adds in one step.
    """
    B, Q, M, K = x.shape
    grid = torch.stack([(2 * x + 1) / W - 1, (2 * y + 1) / H - 1], -1)
    grid = torch.where(_touches(x, y, H, W)[..., None], grid, -3)  # at a distance of one cell rounding would decide
    samples = F.grid_sample(
        cells.permute(0, 2, 3, 1).reshape(B * M, -1, H, W),
        grid.transpose(1, 2).reshape(B * M, Q, K, 2),
        mode='bilinear',
        padding_mode='zeros',
        align_corners=False,
    )  # [B*M, D, Q, K]
    sums = (samples * weight.transpose(1, 2).reshape(B * M, 1, Q, K)).sum(-1)
    return sums.view(B, M, -1, Q).permute(0, 3, 1, 2)


def _gather(cells: Tensor, H: int, W: int, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:  # -> [B, Q, M, D]
    """``_sample`` from indexing and arithmetic alone."""
    B, Q, M, K = x.shape
    cells, x, y = cells.transpose(1, 2), x.transpose(1, 2).flatten(2), y.transpose(1, 2).flatten(2)
    samples = _bilinear(cells, H, W, x, y).unflatten(2, (Q, K))  # [B, M, Q, K, D]
    return (samples * weight.transpose(1, 2)[..., None]).sum(-2).transpose(1, 2)


def _bilinear(
    cells: Tensor, H: int, W: int, x: Tensor, y: Tensor
) -> Tensor:  # [B, M, H*W, D], [B, M, P] -> [B, M, P, D]
    touching, x0, y0 = _touches(x, y, H, W), x.detach().floor(), y.detach().floor()
    output = 0
    for xi, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
        for yi, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
            inside = touching & (xi >= 0) & (xi < W) & (yi >= 0) & (yi < H)
            index = torch.where(inside, yi, 0).long() * W + torch.where(inside, xi, 0).long()
            corner = cells.gather(2, index[..., None].expand(-1, -1, -1, cells.shape[-1]))
            output = output + torch.where(inside[..., None], corner, 0) * torch.where(inside, wx * wy, 0)[..., None]
    return output


def _touches(x: Tensor, y: Tensor, H: int, W: int) -> Tensor:
    """Whether a sample lies less than a cell away from the map; false for what is not finite."""
    return (x > -1) & (y > -1) & (x < W) & (y < H)


def _outside_value(x: Tensor, y: Tensor) -> Tensor:
    """NaN where a coordinate is not finite, and so are its derivatives; else zero."""
    zero = (0 * x + 0 * y).detach()
    return zero * x + zero * y


def _levels(value: Tensor, spatial_shapes: list[tuple[int, int]]) -> tuple[Tensor, ...]:  # [B, H*W, M, D] each
    return value.split([H * W for H, W in spatial_shapes], 1)


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
    G, groups = offset.shape[1] // (2 * kh * kw), C // C_group
    offset = offset.to(dtype).reshape(B * G, kh, kw, 2, Ho, Wo)
    cells = input.to(dtype).reshape(B * G, 1, C // G, H * W).mT
    rows = torch.arange(Ho, dtype=dtype, device=input.device)[:, None] * sy - py
    columns = torch.arange(Wo, dtype=dtype, device=input.device) * sx - px
    output = input.new_zeros(B, len(weight), Ho, Wo, dtype=dtype)
    for u in range(kh):
        for v in range(kw):
            y = (rows + u * dy + offset[:, u, v, 0]).view(B * G, 1, Ho * Wo)
            x = (columns + v * dx + offset[:, u, v, 1]).view(B * G, 1, Ho * Wo)
            samples = _bilinear(cells, H, W, x, y) + _outside_value(x, y)[..., None]  # [B*G, 1, Ho*Wo, C/G]
            samples = samples.mT.reshape(B * G, C // G, Ho * Wo)
            if mask is not None:
                samples = samples * mask.to(dtype).reshape(B * G, kh, kw, 1, Ho * Wo)[:, u, v]
            tap = weight[:, :, u, v].to(dtype).reshape(groups, len(weight) // groups, C_group)
            output = output + (tap @ samples.reshape(B, groups, C_group, Ho * Wo)).reshape(output.shape)
    return (output if bias is None else output + bias.to(dtype)[:, None, None]).to(input.dtype)


def depthwise_conv2d(
    input: Tensor,  # [B, H, W, C]
    weight: Tensor,  # [kh, kw, C]
    bias: Tensor | None,  # [C]
    stride: Sequence[int],  # (y, x)
    padding: Sequence[int],  # (top, left, bottom, right)
) -> Tensor:  # [B, Ho, Wo, C]
    """A convolution of each channel with a kernel of its own, a tap after the other."""
    (_, H, W, _), (kh, kw, _) = input.shape, weight.shape
    (sy, sx), (top, left, bottom, right) = stride, padding
    dtype = _compute_dtype(input)
    padded = F.pad(input.to(dtype), (0, 0, left, right, top, bottom))
    rows, columns = H + top + bottom - kh + 1, W + left + right - kw + 1
    output = 0 if bias is None else bias.to(dtype)
    for u in range(kh):
        for v in range(kw):
            output = output + weight[u, v].to(dtype) * padded[:, u : u + rows : sy, v : v + columns : sx]
    return output.to(input.dtype)


def packed_linear(
    x: Tensor,  # [..., C_in]
    packed: Tensor,  # [panels, C_in, 32]
    bias: Tensor,  # [C_out]
    add: Tensor | None,  # [..., C_out]
    low: float,
    high: float,
) -> Tensor:  # [..., C_out]
    """``x weight^T + bias + add`` within bounds, of a weight in panels of outputs."""
    output = F.linear(x, packed.mT.flatten(0, 1)[: len(bias)], bias)
    return (output if add is None else output + add).clamp(low, high)


def deform_roi_pool(
    input: Tensor,  # [B, C_out*g*g, H, W]; g = group_size
    rois: Tensor,  # [R, 5]
    offset: Tensor | None,  # [R, K*2, h, w]; K sets of C_out/K channels
    output_size: tuple[int, int],  # (h, w)
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    group_size: int = 1,
    rounded: bool = False,
) -> Tensor:  # [R, C_out, h, w]
    """Means of bilinear samples in the bins of regions (DCN, eq. 5 and 6); position-sensitive where group_size > 1.

    ``rounded`` is the definition of the official DeformablePSROIPooling, otherwise it is that of mmcv's deform_roi_pool
    (``ops.deform_ps_roi_pool`` and ``ops.deform_roi_pool`` document both). A RoI of no image gives NaN.
    """
    (B, C, H, W), (h, w), g, R = input.shape, output_size, group_size, rois.shape[0]
    dtype, device = _compute_dtype(input), input.device
    rois = rois.detach().to(dtype)
    offset = rois.new_zeros(R, 2, h, w) if offset is None else offset.to(dtype)
    K, C_out = offset.shape[1] // 2, C // g**2
    offset = offset.view(R, K, 2, h, w)
    row, column = torch.arange(h, device=device)[:, None], torch.arange(w, device=device)
    rule = spatial_scale, sampling_ratio, gamma, rounded
    x, share_x, undefined_x = _samples_of_bins(rois[:, 1], rois[:, 3], column, w, offset[:, :, 0], W, *rule)
    y, share_y, undefined_y = _samples_of_bins(rois[:, 2], rois[:, 4], row, h, offset[:, :, 1], H, *rule)

    is_image = (rois[:, 0] >= 0) & (rois[:, 0] < B)
    undefined = _outside_value(undefined_x, undefined_y).masked_fill(~is_image.view(R, 1, 1, 1), torch.nan)
    output = undefined[..., None].expand(R, K, h, w, C_out // K)
    if B * H * W:
        image = torch.where(is_image, rois[:, 0], 0).long().view(R, 1, 1, 1)
        plane = (image * g + row * g // h) * g + column * g // w
        plane = plane * K + torch.arange(K, device=device).view(K, 1, 1)  # [R, K, h, w]
        table = input.to(dtype).reshape(B, K, C_out // K, g * g, H * W).permute(0, 3, 1, 4, 2).reshape(-1, C_out // K)
        y0, x0 = y.detach().floor(), x.detach().floor()  # [R, K, h, w, samples] each
        for yi, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
            for xi, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                rows, columns = yi.clamp(max=H - 1).long(), xi.clamp(max=W - 1).long()
                index = (plane[..., None, None] * H + rows[..., :, None]) * W + columns[..., None, :]
                weight = (share_y * wy)[..., :, None] * (share_x * wx)[..., None, :]
                output = output + (table[index] * weight[..., None]).sum((-3, -2))
    else:
        output = output + input.sum() * 0
    return output.permute(0, 1, 4, 2, 3).reshape(R, C_out, h, w).to(input.dtype)


def _samples_of_bins(
    low: Tensor,  # [R]
    high: Tensor,  # [R]
    bin: Tensor,  # number of each bin along the axis, [w] or [h, 1]
    bins: int,
    offset: Tensor,  # [R, K, h, w]
    cells: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    rounded: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates and shares of the samples along an axis, [R, K, h, w, samples]; coordinate of the first of each bin.

    A coordinate lies within the map, on whose border it has no derivative outwards.
    """
    if rounded:
        low, high = (x.trunc() + (x - x.trunc() >= 0.5) * 1 - (x - x.trunc() <= -0.5) * 1 for x in (low, high))
        start, end = low * spatial_scale - 0.5, (high + 1) * spatial_scale - 0.5
        side = (end - start).clamp(min=0.1)
    else:
        start = low * spatial_scale - 0.5
        side = high * spatial_scale - 0.5 - start
    size = side / bins
    count = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.nan_to_num(0).ceil().clamp(0, 2**24)
    number = torch.arange(int(count.max()) if len(count) else 0, dtype=size.dtype, device=size.device)
    start, side, size, count = (x.view(-1, 1, 1, 1) for x in (start, side, size, count))
    step = size / count.clamp(min=1)
    first = start + gamma * side * offset + bin * size + (0 if rounded else step / 2)
    x = first[..., None] + number * step[..., None]
    margin = 0.5 if rounded else 1
    counts = (number < count[..., None]) & (x >= -margin) & (x <= cells - 1 + margin)
    counted = counts.to(size.dtype)
    share = counted / (counted.sum(-1, keepdim=True) if rounded else count[..., None]).clamp(min=1)
    # of the derivatives on a border, that towards larger coordinates: as everywhere
    inside = torch.where(counts & (x >= 0) & (x < cells - 1), x, torch.where(x < 0, 0, max(cells - 1, 0)).to(x.dtype))
    return inside, share, first + 0 * step
