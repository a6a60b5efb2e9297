"""Calls every op with arguments that do not fit: `python argument_fuzz.py SEED CALLS [MEGABYTES]`.

Any Python exception is an answer; the end of the process is not. Each call is printed before it is made, so that the
last line of the output is the one that killed it. Run by test_arguments.py.
"""

import faulthandler
import math
import random
import resource
import sys
import warnings

import torch

from mmdet_ddetr import ops

WRAPPING = ((2**32, 2**32), (2**33, 2**33), (2**62, 4), (-(2**32), 2**32))  # maps of 0 cells in 64 bits
HUGE = (2**44, 2**62, 2**63 - 1)  # no machine has that much memory: a copy fails at once
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.complex32),
)


def attention(rng):
    B, Q, M, D, K = (rng.choice((0, 1, 2, 3, 9)) for _ in range(5))
    shapes = [(rng.randrange(5), rng.randrange(5)) for _ in range(rng.randrange(4))]
    S = sum(H * W for H, W in shapes)
    shapes += rng.sample(WRAPPING, rng.choice((0, 0, 0, 0, 1)))
    L = len(shapes)
    value, grad = torch.randn(B, S, M, D), torch.randn(B, Q, M * D)
    plain = torch.rand(B, Q, M, L, K, 2) * 1.6 - 0.3, torch.rand(B, Q, M, L, K)
    fused = torch.rand(B, Q, L, rng.choice((2, 4))), torch.randn(B, Q, M, L, K, 2), torch.randn(B, Q, M, L * K)
    return shapes, [size for shape in shapes for size in shape], value, grad, plain, fused


def cases(rng):
    """(name, function, arguments that fit) of every op, public and direct."""
    direct = torch.ops.mmdet_ddetr
    shapes, flat, value, grad, plain, fused = attention(rng)
    yield 'ms_deform_attn', ops.ms_deform_attn, [value, shapes, *plain]
    yield 'ms_deform_attn_fused', ops.ms_deform_attn_fused, [value, shapes, *fused]
    yield 'op ms_deform_attn', direct.ms_deform_attn, [value, flat, *plain]
    yield 'op ms_deform_attn_fused', direct.ms_deform_attn_fused, [value, flat, *fused]
    yield 'op ms_deform_attn_backward', direct.ms_deform_attn_backward, [grad, value, flat, *plain, False]
    arguments = [grad, value, flat, *fused, rng.random() < 0.5, False]
    yield 'op ms_deform_attn_fused_backward', direct.ms_deform_attn_fused_backward, arguments

    N, C = rng.choice((0, 1, 5)), rng.choice((0, 1, 17))
    logits, labels, gamma = torch.randn(N, C), torch.randint(-1, C + 1, (N,)), rng.choice((2.0, 0.0, 1.5))
    yield 'sigmoid_focal_loss', ops.sigmoid_focal_loss, [logits, labels, 0.25, gamma, rng.random() < 0.5]
    gradient = torch.randn(N) if rng.random() < 0.5 else torch.randn(N, C)
    yield 'op sigmoid_focal_loss_backward', direct.sigmoid_focal_loss_backward, [gradient, logits, labels, 0.25, gamma]

    L, B, Q, C, T = (rng.choice((0, 1, 2, 5)) for _ in range(5))
    image, labels = torch.randint(max(B, 1), (T,)), torch.randint(max(C, 1), (T,))
    arguments = [torch.randn(L, B, Q, C), torch.rand(L, B, Q, 4), image, labels, torch.rand(T, 4), 2.0, 5.0, 2.0]
    yield 'matching_cost', ops.matching_cost, [*arguments, 0.25, gamma, rng.random() < 0.5]

    yield 'nms_keep', ops.nms_keep, [torch.rand(rng.choice((0, 1, 30)), 4) * 50, 0.5, rng.randrange(2)]

    yield 'dropout', ops.dropout, [torch.randn(3, 17), 0.5, True]
    yield 'op dropout', direct.dropout, [torch.randn(3, 17), 0.5, torch.tensor(7)]

    B, H, W, kernel = rng.randrange(3), rng.randrange(1, 6), rng.randrange(1, 6), rng.choice((1, 3))
    offset, mask = torch.randn(B, 2 * kernel**2, H, W), torch.rand(B, kernel**2, H, W)
    arguments = [torch.randn(B, 4, H, W), offset, torch.randn(6, 4, kernel, kernel), torch.randn(6)]
    yield 'deform_conv2d', ops.deform_conv2d, [*arguments, 1, kernel // 2, 1, mask]
    geometry = [1, 1], [kernel // 2] * 2, [1, 1]
    yield 'op deform_conv2d', direct.deform_conv2d, [*arguments[:3], *geometry, mask]
    arguments = [torch.randn(B, 6, H, W), *arguments[:3], *geometry, mask, rng.random() < 0.5, rng.random() < 0.5]
    yield 'op deform_conv2d_backward', direct.deform_conv2d_backward, [*arguments, False]

    C, padding = rng.choice((0, 1, 17)), [kernel // 2] * 4
    arguments = [torch.randn(B, C, H, W), torch.randn(C, 1, kernel, kernel), torch.randn(C), [1, 1], padding]
    yield 'depthwise_conv2d', ops.depthwise_conv2d, arguments
    arguments = [torch.randn(B, H, W, C), torch.randn(kernel, kernel, C), torch.randn(C), [1, 1], padding]
    yield 'op depthwise_conv2d', direct.depthwise_conv2d, arguments
    arguments = [torch.randn(B, H, W, C), *arguments, rng.random() < 0.5, rng.random() < 0.5, False]
    yield 'op depthwise_conv2d_backward', direct.depthwise_conv2d_backward, arguments

    clamped = [*arguments[1:6], -0.5, rng.choice((0.5, -1.0, math.inf))]
    yield 'op depthwise_conv2d_clamped', direct.depthwise_conv2d_clamped, clamped

    rows, C_in, C_out = rng.choice(((), (0,), (5,), (2, 13))), rng.choice((0, 1, 17)), rng.choice((0, 1, 40))
    packed, add = torch.randn(-(-C_out // 32), C_in, 32), rng.choice((torch.randn(*rows, C_out), None))
    arguments = [torch.randn(*rows, C_in), packed, torch.randn(C_out), add, -0.5, rng.choice((0.5, -1.0, math.inf))]
    yield 'op packed_linear', direct.packed_linear, arguments

    R, size = rng.choice((0, 1, 4)), rng.choice((1, 3))
    rois = torch.cat((torch.zeros(R, 1), torch.rand(R, 4) * 30 - 5), 1)
    maps, offset = torch.randn(max(B, 1), 8, H, W), torch.randn(R, 2, size, size)
    ratio, moved = rng.choice((-1, 0, 1, 3, 10**4)), rng.choice((offset, None))
    yield 'deform_roi_pool', ops.deform_roi_pool, [maps, rois, moved, size, 0.25, ratio]
    yield 'deform_ps_roi_pool', ops.deform_ps_roi_pool, [maps, rois, moved, 0.25, 2, 2, size]
    options = (
        [size, size],
        rng.choice((0.25, 0.0, -1e30, math.inf)),
        ratio,
        0.1,
        rng.choice((1, 2, 3)),
        rng.random() < 0.5,
    )
    yield 'op deform_roi_pool', direct.deform_roi_pool, [maps, rois, moved, *options]
    grad_output = torch.randn(R, 8 // options[4] ** 2, size, size)
    arguments = [grad_output, maps, rois, moved, *options, rng.random() < 0.5, rng.random() < 0.5, False]
    yield 'op deform_roi_pool_backward', direct.deform_roi_pool_backward, arguments

    layers, queries, counts = [2, 1], [3, 5], [rng.randrange(4) for _ in range(4)]
    size = 2 * 3 * sum(counts[:2]) + 5 * sum(counts[2:])
    yield 'linear_sum_assignment', ops.linear_sum_assignment, [torch.rand(size), layers, queries, counts]


def resized(tensor, rng):
    """Another size in one dimension, without memory of its own where it is huge."""
    if tensor.dim() == 0:
        return tensor.expand(rng.choice((0, 1, 3)))
    shape = list(tensor.shape)
    shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 7, 33, *HUGE))
    if rng.random() < 0.3:
        shape[rng.randrange(len(shape))] = rng.choice((0, *HUGE))
    if 0 in shape and rng.random() < 0.5:
        return tensor.new_empty(shape)
    return tensor.new_ones(()).expand(shape)


def quantized(tensor, rng):
    return torch.quantize_per_tensor(tensor.float(), 0.1, 3, torch.quint8)


def filled(tensor, rng):
    tensor = tensor.clone()
    number = rng.choice((float('nan'), float('inf'), -float('inf'), 3e38, -3e38, 2.0**31, 1e-45, -1))
    if tensor.numel():
        tensor.view(-1)[rng.randrange(tensor.numel()) :: rng.choice((1, 7))] = (
            number if tensor.is_floating_point() else -1
        )
    return tensor


def shifted(tensor, rng):
    """The same, from an address fit for no vector load."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


CHANGES = {
    'size': resized,
    'dtype': lambda tensor, rng: tensor.to(rng.choice(DTYPES)),
    'float dtype': lambda tensor, rng: tensor.to(rng.choice(DTYPES[:4])),
    'fewer dimensions': lambda tensor, rng: tensor.flatten(rng.randrange(max(tensor.dim(), 1))),
    'more dimensions': lambda tensor, rng: tensor[None] if rng.random() < 0.5 else tensor[..., None],
    '0-dim': lambda tensor, rng: tensor.new_ones(()),
    'meta': lambda tensor, rng: tensor.to('meta'),
    'sparse': lambda tensor, rng: tensor.to_sparse(),
    'csr': lambda tensor, rng: tensor.to_sparse_csr(),
    'mkldnn': lambda tensor, rng: tensor.to_mkldnn(),
    'quantized': quantized,
    'nested': lambda tensor, rng: torch.nested.nested_tensor(
        list(tensor), layout=rng.choice((torch.strided, torch.jagged))
    ),
    'conjugate': lambda tensor, rng: torch.complex(tensor, tensor).conj(),
    'negative bit': lambda tensor, rng: torch.complex(tensor, tensor).conj().imag,
    'zero tensor': lambda tensor, rng: torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype),
    'transposed': lambda tensor, rng: tensor.mT.contiguous().mT,
    'stride 0': lambda tensor, rng: tensor.flatten()[:1].expand(tensor.numel()).view(tensor.shape),
    'overlapping': lambda tensor, rng: tensor.as_strided(tensor.shape, [1] * tensor.dim()),
    'shifted': shifted,
    'values': filled,
    'gradient': lambda tensor, rng: tensor.clone().requires_grad_(),
    'parameter': lambda tensor, rng: torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()),
    'inference': lambda tensor, rng: torch.inference_mode()(torch.clone)(tensor),
    'None': lambda tensor, rng: None,
    'number': lambda tensor, rng: 1.5,
    'list': lambda tensor, rng: tensor.tolist(),
}
NUMBERS = (0, -1, 1, 1.5, 2**31, 2**62, 2**63 - 1, -(2**63), 2**70, float('nan'), float('inf'))
OTHERS = (*NUMBERS, None, 'x', True, [], (1, 2))


def changed(argument, rng):
    if isinstance(argument, torch.Tensor):
        return CHANGES[rng.choice(list(CHANGES))](argument, rng)
    if isinstance(argument, list):
        argument = list(argument)
        what = rng.randrange(5)
        if what == 0 or not argument:
            return rng.choice(([], None, [[]], torch.zeros(3, 2), torch.tensor(4), 5, [0], [(0, 2**62)]))
        at = rng.randrange(len(argument))
        if what == 1:
            del argument[at]
        elif isinstance(argument[at], tuple):
            argument[at] = tuple(rng.choice((size, *NUMBERS, 2**24, 2**24 + 3)) for size in argument[at])
        else:
            argument[at] = rng.choice((*OTHERS, 2**24 + 3))
        return argument
    return rng.choice(OTHERS)


def described(argument):
    if not isinstance(argument, torch.Tensor):
        return repr(argument)
    if argument.layout != torch.strided or argument.is_nested:
        return f'{argument.dtype} {argument.layout} nested={argument.is_nested}'
    flags = [flag for flag in ('requires_grad', 'is_quantized') if getattr(argument, flag)]
    flags += [flag for flag in ('is_neg', 'is_conj', 'is_inference') if getattr(argument, flag)()]
    strides = '' if argument.is_contiguous() else f' strides {argument.stride()}'
    return ' '.join([str(argument.dtype)[6:], str(list(argument.shape)) + strides, argument.device.type, *flags])


def backward(result):
    outputs = [result] if isinstance(result, torch.Tensor) else list(result)
    total = [output.sum() for output in outputs if output.requires_grad and output.device.type == 'cpu']
    if total:
        sum(total).backward()


def main(seed: int, calls: int, megabytes: int = 0):
    faulthandler.enable()
    warnings.simplefilter('ignore')
    if megabytes:  # what does not fit raises instead of calling the kernel's OOM killer
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    answers = {'accepted': 0}
    for number in range(calls):
        rng = random.Random(f'{seed} {number}')
        torch.manual_seed(number)
        name, function, arguments = rng.choice(list(cases(rng)))
        try:
            for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
                at = rng.randrange(len(arguments))
                arguments[at] = changed(arguments[at], rng)
        except (RuntimeError, TypeError, IndexError, ValueError, OverflowError, MemoryError, AssertionError):
            continue  # PyTorch has no such tensor
        print(f'call {number} of seed {seed}: {name}', *map(described, arguments), sep='\n    ', flush=True)
        try:
            backward(function(*arguments))
            answer = 'accepted'
        except Exception as error:
            answer = type(error).__name__
            print(f'    -> {answer}: {str(error).splitlines()[:1]}', flush=True)
        answers[answer] = answers.get(answer, 0) + 1
    print(answers, flush=True)


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
