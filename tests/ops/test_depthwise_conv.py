"""Depthwise convolution: values by hand and against conv2d in fp64, and inside PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmdet_ddetr import ops
from mmdet_ddetr.ops import _load, reference

OP = torch.ops.mmdet_ddetr.depthwise_conv2d.default
CLAMPED = torch.ops.mmdet_ddetr.depthwise_conv2d_clamped.default
BACKWARD = torch.ops.mmdet_ddetr.depthwise_conv2d_backward.default
ROUNDING = {torch.double: 1e-14, torch.float: 2e-6, torch.half: 1e-3, torch.bfloat16: 8e-3}
# B, C, H, W, (kh, kw), stride, (top, left, bottom, right)
CASES = [
    (2, 40, 12, 9, (3, 3), (1, 1), (1, 1, 1, 1)),
    (2, 144, 9, 7, (5, 5), (2, 2), (1, 2, 2, 2)),  # "SAME" of an odd total
    (1, 7, 5, 5, (5, 5), (1, 1), (2, 2, 2, 2)),  # fewer channels than lanes
    (2, 33, 6, 8, (3, 3), (2, 2), (0, 0, 1, 1)),
    (1, 16, 3, 3, (7, 7), (1, 1), (3, 3, 3, 3)),  # no output cell has all its taps inside
    (3, 65, 4, 20, (5, 5), (1, 1), (4, 0, 0, 6)),
    (1, 3, 6, 7, (2, 5), (3, 1), (0, 9, 8, 5)),  # a padding larger than the kernel
    (2, 32, 1, 1, (1, 1), (1, 1), (0, 0, 0, 0)),
    (1, 20, 11, 13, (3, 5), (1, 3), (0, 2, 0, 0)),
]


def make(case, dtype=torch.double, device='cpu'):
    B, C, H, W, kernel, stride, padding = case
    rng = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(B, C, H, W, generator=rng, dtype=torch.double),
        torch.randn(C, 1, *kernel, generator=rng, dtype=torch.double),
        torch.randn(C, generator=rng, dtype=torch.double),
    ]
    return [t.to(device, dtype).requires_grad_() for t in tensors], stride, padding


def by_conv2d(input, weight, bias, stride, padding):
    top, left, bottom, right = padding
    return F.conv2d(F.pad(input, (left, right, top, bottom)), weight, bias, stride, groups=len(weight))


def gradients(function, tensors, *geometry):
    output = function(*tensors, *geometry)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output).to(output)
    return output, *torch.autograd.grad(output, tensors, weights)


def op_arguments(tensors, stride, padding):
    input, weight, bias = tensors
    return input.permute(0, 2, 3, 1), weight[:, 0].permute(1, 2, 0), bias, list(stride), list(padding)


def test_by_hand():
    """Rows and columns of zeros at the bottom and at the right only; stride 2; a bias."""
    input = torch.arange(1.0, 10).view(1, 1, 3, 3).requires_grad_()
    weight = torch.tensor([[[[1.0, 10], [100, 1000]]]], requires_grad=True)
    bias = torch.tensor([0.5], requires_grad=True)
    output = ops.depthwise_conv2d(input, weight, bias, (2, 2), (0, 0, 1, 1))
    assert output.tolist() == [[[[5421.5, 603.5], [87.5, 9.5]]]]
    output.sum().backward()
    assert input.grad.tolist() == [[[[1, 10, 1], [100, 1000, 100], [1, 10, 1]]]]
    assert weight.grad.tolist() == [[[[1 + 3 + 7 + 9, 2 + 8], [4 + 6, 5]]]]
    assert bias.grad.tolist() == [4]


@pytest.mark.parametrize('dtype', ROUNDING, ids=str)
@pytest.mark.parametrize('case', CASES, ids=str)
def test_values_and_gradients(case, dtype, device):
    tensors, *geometry = make(case, dtype, device)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = gradients(by_conv2d, exact, *geometry)
    for got, want in zip(gradients(ops.depthwise_conv2d, tensors, *geometry), expected):
        assert got.dtype == dtype and got.shape == want.shape
        assert (got.double() - want).abs().max() <= ROUNDING[dtype] * want.abs().max()


@pytest.mark.parametrize('case', CASES, ids=str)
def test_reference(case):
    tensors, *geometry = make(case)
    arguments = op_arguments(tensors, *geometry)
    torch.testing.assert_close(
        reference.depthwise_conv2d(*arguments), by_conv2d(*tensors, *geometry).permute(0, 2, 3, 1)
    )
    torch.testing.assert_close(reference.depthwise_conv2d(*arguments), OP(*arguments))


def test_without_bias_and_in_any_layout():
    (input, weight, _), *geometry = make(CASES[0], torch.float)
    expected = by_conv2d(input, weight, None, *geometry)
    for layout in (torch.contiguous_format, torch.channels_last):
        output = ops.depthwise_conv2d(input.contiguous(memory_format=layout), weight, None, *geometry)
        torch.testing.assert_close(output, expected)
        assert not _load.EXTENSION_LOADED or output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('dtype', ROUNDING, ids=str)
@pytest.mark.parametrize('case', CASES, ids=str)
def test_bounds(case, dtype):
    """What clamp makes of the output, also of what is not a number; without a gradient."""
    tensors, *geometry = make(case, dtype)
    tensors[0].data[0, 0, 0, 0] = torch.nan
    arguments = op_arguments([tensor.detach() for tensor in tensors], *geometry)
    for bounds in ((0.0, 1.5), (0.0, torch.inf), (-torch.inf, torch.inf)):
        expected = OP(*arguments).clamp(*bounds)
        torch.testing.assert_close(CLAMPED(*arguments, *bounds), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('sizes', [(0, 4, 5, 5), (2, 0, 5, 5)])
def test_empty(sizes):
    B, C, H, W = sizes
    input, weight = torch.randn(sizes, requires_grad=True), torch.randn(C, 1, 3, 3, requires_grad=True)
    bias = torch.randn(C, requires_grad=True)
    arguments = op_arguments((input, weight, bias), (1, 1), (1, 1, 1, 1))
    output = OP(*arguments)
    assert output.shape == (B, H, W, C)
    output.sum().backward()
    assert not weight.grad.any() and not bias.grad.any() and input.grad.shape == sizes


def test_gradcheck():
    tensors, *geometry = make((1, 3, 4, 5, (3, 3), (2, 1), (0, 1, 1, 2)))
    call = lambda *t: ops.depthwise_conv2d(*t, *geometry)  # noqa: E731
    assert torch.autograd.gradcheck(call, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize('bias', [True, False])
def test_opcheck(bias):
    tensors, *geometry = make(CASES[3], torch.float)
    arguments = list(op_arguments(tensors, *geometry))
    arguments[:3] = [tensor.detach().contiguous().requires_grad_() for tensor in arguments[:3]]
    arguments[2] = arguments[2] if bias else None
    torch.library.opcheck(OP, arguments)
    grad_output = torch.randn_like(OP(*arguments))
    arguments = [argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    torch.library.opcheck(CLAMPED, (*arguments, 0.0, 6.0))
    for flags in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(BACKWARD, (grad_output, *arguments, *flags, False))


def test_threads_change_nothing():
    tensors, *geometry = make(CASES[1], torch.float)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(gradients(ops.depthwise_conv2d, tensors, *geometry))
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_autocast():
    tensors, *geometry = make(CASES[0], torch.float)
    with torch.autocast('cpu', torch.bfloat16):
        output = ops.depthwise_conv2d(*tensors, *geometry)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert all(tensor.grad.dtype == torch.float for tensor in tensors)


def test_vmap():
    """Each example may have a weight of its own."""
    tensors, *geometry = make((2, 3, 5, 4, (3, 3), (1, 2), (1, 1, 1, 1)))
    arguments = op_arguments([tensor.detach() for tensor in tensors], *geometry)[:3]
    weights = torch.stack([arguments[1], 2 * arguments[1]])
    got = torch.func.vmap(lambda w: OP(arguments[0], w, arguments[2], *map(list, geometry)))(weights)
    expected = torch.stack([OP(arguments[0], w, arguments[2], *map(list, geometry)) for w in weights])
    torch.testing.assert_close(got, expected)


def test_traced_programs_have_a_plain_convolution():
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return ops.depthwise_conv2d(*tensors, (2, 2), (1, 2, 2, 2))

    tensors, *_ = make(CASES[1], torch.float)
    program = torch.export.export(Module(), tuple(tensor.detach() for tensor in tensors))
    assert 'conv2d' in program.graph_module.code and 'mmdet_ddetr' not in program.graph_module.code
    torch.testing.assert_close(program.module()(*tensors), Module()(*tensors))


def test_operations_are_counted():
    tensors, *geometry = make(CASES[0], torch.float)
    with FlopCounterMode(display=False) as counter:
        OP(*op_arguments(tensors, *geometry))
    assert counter.get_total_flops() == 2 * 2 * 40 * 12 * 9 * 9


FITTING = dict(
    input=torch.zeros(1, 4, 5, 2), weight=torch.zeros(3, 3, 2), bias=torch.zeros(2), stride=[1, 1], padding=[1, 1, 1, 1]
)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(input=torch.zeros(4, 5, 2)), r'input must be \[B, H, W, C\], got \[4, 5, 2\]'),
        (dict(input=torch.zeros(1, 4, 5, 2, dtype=torch.int)), 'input must be fp64, fp32, fp16 or bf16, got'),
        (dict(weight=torch.zeros(3, 3, 3)), r'weight must be \[kh, kw, C\] with C = 2, got \[3, 3, 3\]'),
        (dict(weight=torch.zeros(3, 3, 2).double()), r"weight must be .* \(input's dtype\), got"),
        (dict(weight=torch.zeros(3, 9, 2)), 'weight must not be larger than the padded input'),
        (dict(weight=torch.zeros(0, 3, 2)), r'weight must'),
        (dict(bias=torch.zeros(3)), r'bias must be \[C\] = \[2\], got \[3\]'),
        (dict(stride=[1]), 'stride must be 2 integers, got 1'),
        (dict(stride=[0, 1]), 'stride must be at least 1'),
        (dict(padding=[1, 1]), 'padding must be 4 integers, got 2'),
        (dict(padding=[1, 1, 1, -1]), 'padding must be at least 0'),
    ],
)
def test_errors_name_the_argument(change, message, call):
    with pytest.raises(RuntimeError, match=message):
        call(OP, {**FITTING, **change})


def test_public_function_wants_the_shapes_of_conv2d():
    with pytest.raises(RuntimeError):
        ops.depthwise_conv2d(torch.zeros(1, 4, 5, 5), torch.zeros(4, 2, 3, 3))
