"""The argument checks of csrc/ with its messages, for the shape functions and for devices without a compiled kernel.

Python's integers do not overflow. A size that ``torch.compile`` or ``torch.export`` keeps open is a symbol: what can be
told of it for certain is checked here, the rest when the compiled code runs. spatial_shapes is flat: H0, W0, H1, ...
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MOST_CELLS = 2**31 - 1  # of all levels together: the kernels number the cells with 32 bits


def most_rows(dtype: torch.dtype) -> int:
    """Rows and columns of a level: the kernels keep them in the compute type, too; beyond 2^24 fp32 skips numbers."""
    return MOST_CELLS if dtype == torch.float64 else 2**24


def check_ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
):
    _check_value(value, spatial_shapes)
    _check_points(value, spatial_shapes, 'sampling_locations', sampling_locations)
    B, Q, M, L, K, _ = sampling_locations.shape
    _check_shape('attention_weights', attention_weights, 'B, Q, M, L, K', (B, Q, M, L, K))
    _check_dtypes(value, sampling_locations=sampling_locations, attention_weights=attention_weights)


def check_ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
):
    _check_value(value, spatial_shapes)
    _check_points(value, spatial_shapes, 'sampling_offsets', sampling_offsets)
    B, Q, M, L, K, _ = sampling_offsets.shape
    _check_shape('attention_logits', attention_logits, 'B, Q, M, L*K', (B, Q, M, L * K))
    _check_dtypes(value, sampling_offsets=sampling_offsets, attention_logits=attention_logits)
    _check(
        _fits(reference_points.shape, (B, Q, L, 2)) or _fits(reference_points.shape, (B, Q, L, 4)),
        f'reference_points must be [B, Q, L, 2 or 4] = [{B}, {Q}, {L}, 2 or 4], got {list(reference_points.shape)}',
    )
    dtype = compute_dtype(value.dtype)
    _check_dtype('reference_points', reference_points, dtype, f' beside a value of {value.dtype}')
    _check_device('value', value, reference_points=reference_points)


def check_grad_output(grad_output: Tensor, value: Tensor, Q: int):
    B, _, M, D = value.shape
    _check_shape('grad_output', grad_output, 'B, Q, M*D', (B, Q, M * D))
    _check_dtype('grad_output', grad_output, value.dtype, " (value's dtype)")
    _check_device('value', value, grad_output=grad_output)


def check_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
) -> tuple[int, int]:
    """The output's height and width."""
    _check_shape('input', input, 'B, C, H, W', (None,) * 4)
    _check_computable('input', input)
    compute = compute_dtype(input.dtype)
    for name, tensor in dict(offset=offset, weight=weight, mask=mask).items():
        if tensor is None:
            continue
        _check(tensor.dim() == 4, f'{name} must have 4 dimensions, got {list(tensor.shape)}')
        dtypes = (input.dtype,) if name == 'weight' else (input.dtype, compute)
        also = '' if name == 'weight' else f' or {compute}'
        _check(tensor.dtype in dtypes, f"{name} must be {input.dtype} (input's dtype){also}, got {tensor.dtype}")
        _check_device('input', input, **{name: tensor})
    for name, pair, least in (('stride', stride, 1), ('padding', padding, 0), ('dilation', dilation, 1)):
        _check(len(pair) == 2, f'{name} must be two integers, got {len(pair)}')
        for number in pair:
            _check(
                (number >= least) & (number <= MOST_CELLS),
                f'{name} must be at least {least} and at most {MOST_CELLS}, got {tuple(pair)}',
            )

    (B, C, H, W), (C_out, C_group, kh, kw) = input.shape, weight.shape
    most = most_rows(input.dtype)
    _check_map('input', input)
    wrong = f'weight must be [C_out, C/groups, kh, kw] for input {list(input.shape)}, got {list(weight.shape)}'
    for size in (C, C_group, kh, kw):
        _check(size > 0, wrong)
    _check(C % C_group == 0, wrong)
    _check(C_out % (C // C_group) == 0, wrong)
    _check((kh <= most) & (kw <= most), wrong)
    T = kh * kw
    Ho, Wo = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip((H, W), (kh, kw), stride, padding, dilation)
    )
    _check_size('the taps of a cell', (C, 2, kh, kw))
    G = offset.shape[1] // (2 * T)
    wrong = (
        f'offset must be [B, G*T*2, Ho, Wo] = [{B}, G*{2 * T}, {Ho}, {Wo}] with G dividing C = {C}, '
        f'got {list(offset.shape)}'
    )
    _check(G > 0, wrong)
    _check(C % G == 0, wrong)
    _check(_fits(offset.shape, (B, 2 * G * T, Ho, Wo)), wrong)
    if mask is not None:
        expected = [B, G * T, Ho, Wo]
        _check(_fits(mask.shape, expected), f'mask must be [B, G*T, Ho, Wo] = {expected}, got {list(mask.shape)}')
    _check_size("input's cells", (B, H, W, C))
    _check_size('the output', (B, C_out, Ho, Wo))
    _check_size('a chunk of columns', (Ho, Wo, T, C))
    return Ho, Wo


def check_conv_grad_output(grad_output: Tensor, input: Tensor, expected: Sequence[int], dims: str = 'B, C_out, Ho, Wo'):
    _check_shape('grad_output', grad_output, dims, expected)
    _check_dtype('grad_output', grad_output, input.dtype, " (input's dtype)")
    _check_device('input', input, grad_output=grad_output)


def check_depthwise_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int, int, int]:
    """The output's shape."""
    _check_shape('input', input, 'B, H, W, C', (None,) * 4)
    _check_computable('input', input)
    B, H, W, C = input.shape
    for name, numbers, count, least in (('stride', stride, 2, 1), ('padding', padding, 4, 0)):
        _check(len(numbers) == count, f'{name} must be {count} integers, got {len(numbers)}')
        for number in numbers:
            _check(
                (number >= least) & (number <= MOST_CELLS),
                f'{name} must be at least {least} and at most {MOST_CELLS}, got {tuple(numbers)}',
            )
    _check(_fits(weight.shape, (None, None, C)), f'weight must be [kh, kw, C] with C = {C}, got {list(weight.shape)}')
    for name, tensor in dict(weight=weight, bias=bias).items():
        if tensor is not None:
            _check_dtype(name, tensor, input.dtype, " (input's dtype)")
            _check_device('input', input, **{name: tensor})
    if bias is not None:
        _check_shape('bias', bias, 'C', (C,))
    kh, kw, _ = weight.shape
    for size in (kh, kw):
        _check(size > 0, f'weight must have taps, got {list(weight.shape)}')
    for size in (H, W, kh, kw):
        _check(
            size <= MOST_CELLS,
            f'input and weight must have at most {MOST_CELLS} rows and columns, '
            f'got {list(input.shape)} and {list(weight.shape)}',
        )
    top, left, bottom, right = padding
    rows, columns = H + top + bottom - kh, W + left + right - kw
    for room in (rows, columns):
        _check(
            room >= 0,
            f'weight must not be larger than the padded input, got {list(weight.shape)} for {list(input.shape)}',
        )
    shape = B, rows // stride[0] + 1, columns // stride[1] + 1, C
    _check_size("input's cells", input.shape)
    _check_size('the output', shape)
    return shape


PANEL = 32  # outputs of a panel of packed weights


def check_packed_linear(x: Tensor, packed: Tensor, bias: Tensor, add: Tensor | None) -> tuple[int, ...]:
    """The output's shape."""
    _check(x.dim() > 0, f'x must be [..., C_in], got {list(x.shape)}')
    _check_shape('bias', bias, 'C_out', (None,))
    (*N, C_in), (C_out,) = x.shape, bias.shape
    _check_shape('packed', packed, f'panels, C_in, {PANEL}', (-(-C_out // PANEL), C_in, PANEL))
    tensors = dict(packed=packed, bias=bias)
    if add is not None:
        _check_shape('add', add, '..., C_out', (*N, C_out))
        tensors['add'] = add
    for tensor in (x, *tensors.values()):
        _check(tensor.dtype == torch.float32, f'all arguments must be fp32, got {tensor.dtype}')
    _check_device('x', x, **tensors)
    _check_size('x', x.shape)
    _check_size('packed', packed.shape)
    _check_size('the output', (*N, C_out))
    return *N, C_out


MOST_SAMPLING_RATIO = 1024


def check_deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    group_size: int,
    rounded: bool,
) -> tuple[int, int, int, int]:
    """The output's shape."""
    _check_shape('input', input, 'B, C, H, W', (None,) * 4)
    _check_computable('input', input)
    compute = compute_dtype(input.dtype)
    _check_shape('rois', rois, 'R, 5', (None, 5))
    for name, tensor in dict(rois=rois, offset=offset).items():
        if tensor is None:
            continue
        _check(
            tensor.dtype in (input.dtype, compute),
            f"{name} must be {input.dtype} (input's dtype) or {compute}, got {tensor.dtype}",
        )
        _check_device('input', input, **{name: tensor})
    _check(len(output_size) == 2, f'output_size must be two integers, got {len(output_size)}')
    h, w = output_size
    for number in output_size:
        _check(
            (number >= 1) & (number <= MOST_CELLS),
            f'output_size must be at least 1 and at most {MOST_CELLS}, got {tuple(output_size)}',
        )
    _check(0 < spatial_scale < math.inf, f'spatial_scale must be a positive number, got {spatial_scale}')
    _check(math.isfinite(gamma), f'gamma must be finite, got {gamma}')
    _check(
        sampling_ratio <= MOST_SAMPLING_RATIO,
        f'sampling_ratio must be at most {MOST_SAMPLING_RATIO}, got {sampling_ratio}',
    )
    _check(not rounded or sampling_ratio > 0, f'sampling_ratio must be positive, got {sampling_ratio}')

    (B, C, H, W), R = input.shape, rois.shape[0]
    wrong = f'group_size must be positive and its square divide the {C} channels of input, got {group_size}'
    _check(group_size >= 1, wrong)
    _check(group_size <= C, wrong)
    _check(C % group_size**2 == 0, wrong)
    _check_map('input', input)
    C_out = C // group_size**2
    if offset is not None:
        wrong = (
            f'offset must be [R, 2*K, h, w] = [{R}, 2*K, {h}, {w}] with K dividing {C_out} channels, '
            f'got {list(offset.shape)}'
        )
        _check(_fits(offset.shape, (R, None, h, w)), wrong)
        twice = offset.shape[1]
        _check(twice > 0, wrong)
        _check(twice % 2 == 0, wrong)
        _check(C_out % (twice // 2) == 0, wrong)
        _check_size('the offsets', (R, twice, h, w))
    _check_size("input's cells", (B, H, W, C))
    _check_size('the output', (R, C, h, w))
    return R, C_out, h, w


def check_pool_grad_output(grad_output: Tensor, input: Tensor, expected: Sequence[int]):
    _check_shape('grad_output', grad_output, 'R, C_out, h, w', expected)
    _check_dtype('grad_output', grad_output, input.dtype, " (input's dtype)")
    _check_device('input', input, grad_output=grad_output)


def check_sigmoid_focal_loss(logits: Tensor, labels: Tensor, gamma: float):
    _check_shape('logits', logits, 'N, C', (None, None))
    _check_computable('logits', logits)
    _check_shape('labels', labels, 'N', logits.shape[:1])
    _check(labels.dtype == torch.int64, f'labels must be int64, got {labels.dtype}')
    _check_device('logits', logits, labels=labels)
    _check(gamma >= 0, f'gamma must not be negative, got {gamma}')


def check_focal_grad_output(grad_output: Tensor, logits: Tensor):
    N, C = logits.shape
    _check(
        _fits(grad_output.shape, (N, C)) or _fits(grad_output.shape, (N,)),
        f'grad_output must be [N, C] = [{N}, {C}] or [N] = [{N}], got {list(grad_output.shape)}',
    )
    _check_dtype('grad_output', grad_output, compute_dtype(logits.dtype), f' beside logits of {logits.dtype}')
    _check_device('logits', logits, grad_output=grad_output)


def check_matching_cost(scores: Tensor, boxes: Tensor, image: Tensor, labels: Tensor, targets: Tensor, gamma: float):
    _check_shape('scores', scores, 'L, B, Q, C', (None, None, None, None))
    _check_shape('image', image, 'T', (None,))
    (L, B, Q, _), (T,) = scores.shape, image.shape
    _check_shape('boxes', boxes, 'L, B, Q, 4', (L, B, Q, 4))
    _check_shape('labels', labels, 'T', (T,))
    _check_shape('targets', targets, 'T, 4', (T, 4))
    for tensor in (scores, boxes, targets):
        _check(tensor.dtype == torch.float32, f'scores, boxes and targets must be fp32, got {tensor.dtype}')
    for tensor in (image, labels):
        _check(tensor.dtype == torch.int64, f'image and labels must be int64, got {tensor.dtype}')
    _check_device('scores', scores, boxes=boxes, image=image, labels=labels, targets=targets)
    _check(gamma >= 0, f'gamma must not be negative, got {gamma}')
    _check_size('the cost', (L, T, Q))


def check_dropout(input: Tensor, p: float, seed: Tensor):
    _check_computable('input', input)
    _check(0 <= p <= 1, f'p must be in [0, 1], got {p}')
    _check(seed.dtype == torch.int64, f'seed must be int64, got {seed.dtype}')
    _check(seed.numel() == 1, f'seed must be one number, got {list(seed.shape)}')
    _check(seed.device.type == 'cpu', f'seed must be on the CPU, but it is on {seed.device}')


def check_nms(boxes: Tensor, offset: int):
    _check_shape('boxes', boxes, 'N, 4', (None, 4))
    _check(boxes.dtype == compute_dtype(boxes.dtype), f'boxes must be fp32 or fp64, got {boxes.dtype}')
    _check_strided('boxes', boxes)
    _check(offset in (0, 1), f'offset must be 0 or 1, got {offset}')


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What coordinates and sums are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_value(value: Tensor, spatial_shapes: Sequence[int]):
    _check_shape('value', value, 'B, S, M, D', (None,) * 4)
    _check_computable('value', value)
    _check(
        len(spatial_shapes) % 2 == 0,
        f'spatial_shapes must hold (H, W) of each level, got {len(spatial_shapes)} numbers',
    )
    cells, most = 0, most_rows(value.dtype)
    for H, W in zip(spatial_shapes[::2], spatial_shapes[1::2]):
        for size in (H, W):
            _check(size >= 0, f'spatial_shapes must not be negative, got ({H}, {W})')
            _check(
                size <= most,
                f'spatial_shapes must be at most {most} in height and width beside a value of {value.dtype}, '
                f'got ({H}, {W})',
            )
        cells = cells + H * W
        _check(
            cells <= MOST_CELLS, f'spatial_shapes must give at most {MOST_CELLS} cells, got {cells} up to ({H}, {W})'
        )
    _check(
        cells == value.shape[1],
        f'spatial_shapes give {cells} cells, but value {list(value.shape)} has {value.shape[1]}',
    )


def _check_points(value: Tensor, spatial_shapes: Sequence[int], name: str, points: Tensor):
    (B, _, M, D), L = value.shape, len(spatial_shapes) // 2
    _check(
        _fits(points.shape, (B, None, M, L, None, 2)),
        f'{name} must be [B, Q, M, L, K, 2] = [{B}, Q, {M}, {L}, K, 2], got {list(points.shape)}',
    )
    _check_size('the output', (B, points.shape[1], M, D))
    _check_size('a cell of value', (M, D))
    _check_size('a row of attention weights', (L, points.shape[4]))


def _check_dtypes(value: Tensor, **points: Tensor):
    """The tensors of points have one dtype: value's or the one it is computed in."""
    compute = compute_dtype(value.dtype)
    for name, tensor in points.items():
        _check(
            tensor.dtype in (value.dtype, compute),
            f"{name} must be {value.dtype} (value's dtype) or {compute}, got {tensor.dtype}",
        )
    dtypes = [tensor.dtype for tensor in points.values()]
    _check(dtypes[0] == dtypes[1], f'{" and ".join(points)} must have the same dtype, got {dtypes[0]} and {dtypes[1]}')
    _check_device('value', value, **points)


def _check_shape(name: str, tensor: Tensor, dims: str, expected: Sequence[int | None]):
    known = '' if None in expected else f' = {list(expected)}'
    _check(_fits(tensor.shape, expected), f'{name} must be [{dims}]{known}, got {list(tensor.shape)}')


def _check_dtype(name: str, tensor: Tensor, dtype: torch.dtype, why: str):
    _check(tensor.dtype == dtype, f'{name} must be {dtype}{why}, got {tensor.dtype}')


def _check_computable(name: str, tensor: Tensor):
    _check(tensor.dtype in FLOATS, f'{name} must be fp64, fp32, fp16 or bf16, got {tensor.dtype}')
    _check_strided(name, tensor)


def _check_map(name: str, tensor: Tensor):
    H, W = tensor.shape[2:]
    most = most_rows(tensor.dtype)
    for size in (H, W):
        _check(
            size <= most,
            f'{name} must have at most {most} rows and columns beside {tensor.dtype}, got {list(tensor.shape)}',
        )
    _check(H * W <= MOST_CELLS, f'{name} must have at most {MOST_CELLS} cells, got {list(tensor.shape)}')


def _check_device(owner: str, first: Tensor, **others: Tensor):
    for name, tensor in others.items():
        _check(
            tensor.device == first.device,
            f"{name} must be on {owner}'s device {first.device}, but it is on {tensor.device}",
        )
        _check_strided(name, tensor)


def _check_strided(name: str, tensor: Tensor):
    _check(tensor.layout == torch.strided, f'{name} must be a dense tensor, got one of layout {tensor.layout}')


def _check_size(name: str, sizes: Sequence[int]):
    """A product of sizes that the kernels compute fits 64 bits."""
    if all(isinstance(size, int) for size in sizes):
        _check(math.prod(sizes) < 2**63, f'{name} must have less than 2^63 elements, got {list(sizes)}')


def _check(ok: bool | torch.SymBool, message: str):
    """Raise RuntimeError if ``ok`` is false whatever its symbols stand for."""
    if _certain(torch.sym_not(ok)):
        raise RuntimeError(message)


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Whether ``shape`` can be ``expected``, where None stands for any size."""
    return len(shape) == len(expected) and not any(
        want is not None and _certain(size != want) for size, want in zip(shape, expected)
    )


def _certain(condition: bool | torch.SymBool) -> bool:
    """Whether a condition holds whatever its symbols stand for."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # here: it imports sympy

    return statically_known_true(condition)
