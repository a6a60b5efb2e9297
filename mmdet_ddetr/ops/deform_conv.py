"""Deformable convolution, plain and modulated (DCN, arXiv:1703.06211; DCNv2, arXiv:1811.11168).

To sample a map at learned points is what multi-scale deformable attention does, here with one level and one point a
query: a query for every tap of every output cell, a head for every offset group, the mask for the attention weight.
What remains of the convolution is a matrix product.
"""

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from ._checks import FLOATS
from .ms_deform_attn import ms_deform_attn


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
    """A convolution whose taps are displaced, and weighted where there is a mask.

    Arguments and result are those of ``torchvision.ops.deform_conv2d``, samples and borders those of mmcv, too. The
    number of groups follows from ``weight``, that of offset groups from ``offset``. Differentiable in every tensor.

    Args:
        input: fp64, fp32, fp16 or bf16.
        offset: displacement of each tap in cells of ``input``, (y, x); group by group, tap by tap, rows of the kernel
            first. Coordinates are computed in fp32 (fp64 where input is fp64).
        weight: as for ``torch.nn.functional.conv2d``.
        mask: factor of each tap, as a rule in [0, 1]; None: 1 (DCN).
        stride, padding, dilation: as for ``conv2d``; a pair is (y, x).

    A sample is bilinear among the cells and zeros around them: it fades out within one cell of the border.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit.
    """
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    Ho, Wo = _check(input, offset, weight, bias, mask, stride, padding, dilation)
    (B, C, H, W), (C_out, C_group, kh, kw) = input.shape, weight.shape
    (sy, sx), (py, px), (dy, dx) = stride, padding, dilation
    T, G = kh * kw, offset.shape[1] // (2 * kh * kw)

    dtype = torch.promote_types(input.dtype, torch.float32)
    y, x = (torch.arange(size, dtype=dtype, device=input.device) for size in (Ho, Wo))
    tap_y, tap_x = (torch.arange(size, dtype=dtype, device=input.device) for size in (kh, kw))
    y = ((y * sy - py)[:, None] + tap_y * dy)[:, None, :, None].expand(Ho, Wo, kh, kw)
    x = ((x * sx - px)[:, None] + tap_x * dx)[None, :, None, :].expand(Ho, Wo, kh, kw)
    taps = torch.stack([x, y], -1).view(Ho, Wo, T, 1, 2)
    shift = offset.to(dtype).reshape(B, G, T, 2, Ho, Wo).permute(0, 4, 5, 2, 1, 3).flip(-1)  # [B, Ho, Wo, T, G, (x, y)]
    locations = (taps + shift + 0.5) / taps.new_tensor([max(W, 1), max(H, 1)])  # cells' centres lie at halves
    if mask is None:
        weights = locations.new_ones(B, Ho, Wo, T, G)
    else:
        weights = mask.to(dtype).reshape(B, G, T, Ho, Wo).permute(0, 3, 4, 2, 1)
    columns = ms_deform_attn(
        input.flatten(2).transpose(1, 2).unflatten(2, (G, C // G)),
        [(H, W)],
        locations.reshape(B, Ho * Wo * T, G, 1, 1, 2),
        weights.reshape(B, Ho * Wo * T, G, 1, 1),
    )  # [B, Ho*Wo*T, C]

    groups = C // C_group
    output = torch.einsum(
        'bntgc,goct->bgon',
        columns.view(B, Ho * Wo, T, groups, C_group),
        weight.reshape(groups, C_out // groups, C_group, T).to(columns.dtype),
    ).reshape(B, C_out, Ho, Wo)
    return output if bias is None else output + bias[:, None, None].to(output.dtype)


def _check(input, offset, weight, bias, mask, stride, padding, dilation) -> tuple[int, int]:
    """Raise where the arguments do not fit each other; else the output's height and width."""
    tensors = dict(input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dim() != (1 if name == 'bias' else 4):
            raise ValueError(f'{name} must have {1 if name == "bias" else 4} dimensions, got {list(tensor.shape)}')
        if tensor.dtype not in FLOATS or tensor.layout != torch.strided:
            raise ValueError(
                f'{name} must be a dense tensor of fp64, fp32, fp16 or bf16, got {tensor.dtype}, {tensor.layout}'
            )
        if tensor.device != input.device:
            raise ValueError(f"{name} must be on input's device {input.device}, but it is on {tensor.device}")
    for name, pair, least in (('stride', stride, 1), ('padding', padding, 0), ('dilation', dilation, 1)):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f'{name} must be two integers of at least {least}, got {pair}')

    (B, C, H, W), (C_out, C_group, kh, kw) = input.shape, weight.shape
    T = kh * kw
    if T == 0 or C_group == 0 or C % C_group or C == 0 or C_out % (C // C_group):
        raise ValueError(
            f'weight must be [C_out, C/groups, kh, kw] for input {list(input.shape)}, got {list(weight.shape)}'
        )
    if bias is not None and len(bias) != C_out:
        raise ValueError(f'bias must be [C_out] = [{C_out}], got {list(bias.shape)}')
    size = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip((H, W), (kh, kw), stride, padding, dilation)
    )
    G = offset.shape[1] // (2 * T)
    if G == 0 or C % G or offset.shape != (B, G * T * 2, *size):
        raise ValueError(
            f'offset must be [B, G*T*2, Ho, Wo] = [{B}, G*{2 * T}, {size[0]}, {size[1]}] with G dividing C = {C}, '
            f'got {list(offset.shape)}'
        )
    if mask is not None and mask.shape != (B, G * T, *size):
        raise ValueError(f'mask must be [B, G*T, Ho, Wo] = {[B, G * T, *size]}, got {list(mask.shape)}')
    return size
