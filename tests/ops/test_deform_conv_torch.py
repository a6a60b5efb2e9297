"""Deformable convolution inside PyTorch: registrations, compile, autocast, vmap, derivatives, threads, chunks, fuzz."""

import pytest
import torch
from shape_fuzz import check_random_shape
from torch.utils.flop_counter import FlopCounterMode

from mmdet_ddetr.ops import _load, deform_conv2d, reference

OP = torch.ops.mmdet_ddetr.deform_conv2d.default
BACKWARD = torch.ops.mmdet_ddetr.deform_conv2d_backward.default
GEOMETRY = [2, 1], [1, 1], [1, 2]  # stride, padding, dilation


def make(dtype=torch.float32, B=2, C=6, C_out=4, groups=2, G=3, size=(5, 6), modulated=True):
    """input, offset, weight and mask of a 3 x 3 kernel; Ho = (H + 1) // 2, Wo = W - 2."""
    rng = torch.Generator().manual_seed(0)
    Ho, Wo = (size[0] + 1) // 2, size[1] - 2
    tensors = [
        torch.randn(B, C, *size, generator=rng, dtype=torch.double),
        torch.randn(B, G * 18, Ho, Wo, generator=rng, dtype=torch.double),
        torch.randn(C_out, C // groups, 3, 3, generator=rng, dtype=torch.double),
        torch.rand(B, G * 9, Ho, Wo, generator=rng, dtype=torch.double),
    ]
    return [tensor.to(dtype) for tensor in tensors[: 3 + modulated]]


def call(input, offset, weight, mask=None):
    return deform_conv2d(input, offset, weight, None, *map(tuple, GEOMETRY), mask=mask)


def by_reference(input, offset, weight, mask=None):
    return reference.deform_conv2d(input, offset, weight, None, *GEOMETRY, mask)


def leaves_of(tensors):
    return [tensor.detach().requires_grad_() for tensor in tensors]


def gradients(function, tensors):
    leaves = leaves_of(tensors)
    output = function(*leaves)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output.detach(), *torch.autograd.grad(output, leaves, weights)


@pytest.mark.parametrize('modulated', [True, False])
def test_opcheck(modulated):
    input, offset, weight, *mask = leaves_of(make(modulated=modulated))
    arguments = input, offset, weight, *GEOMETRY, mask[0] if mask else None
    torch.library.opcheck(OP, arguments)
    grad_output = torch.randn_like(OP(*arguments))
    arguments = [argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    for flags in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(BACKWARD, (grad_output, *arguments, *flags, False))


@pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='plain PyTorch gives all gradients')
def test_gradients_on_request_only():
    input, offset, weight, mask = make()
    grad_output = torch.randn_like(call(input, offset, weight, mask))
    arguments = grad_output, input, offset, weight, *GEOMETRY, mask
    everything = BACKWARD(*arguments, True, True, False)
    for flags, given in (((True, False), (0, 1, 3)), ((False, True), (2,)), ((False, False), ())):
        for i, (got, expected) in enumerate(zip(BACKWARD(*arguments, *flags, False), everything)):
            torch.testing.assert_close(got, expected if i in given else expected.new_empty(0), rtol=0, atol=0)


@pytest.mark.parametrize('dynamic', [False, True], ids=['static', 'dynamic'])
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: call(t[0] * 2, *t[1:]), fullgraph=True, dynamic=dynamic, backend='aot_eager')
    for size in ((5, 6), (7, 9))[: 1 + dynamic]:
        tensors = make(size=size)
        for got, expected in zip(gradients(compiled, tensors), gradients(lambda *t: call(t[0] * 2, *t[1:]), tensors)):
            torch.testing.assert_close(got, expected)


def test_autocast_narrows_input_and_weight_and_leaves_positions_alone():
    input, offset, weight, mask = leaves = leaves_of(make())
    with torch.autocast('cpu', torch.bfloat16):
        output = call(*leaves)
        doubles = [tensor.double() for tensor in leaves]
        assert call(*doubles).dtype == torch.float64
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, call(input.bfloat16(), offset, weight.bfloat16(), mask))
    output.sum().backward()
    assert all(leaf.grad.dtype == torch.float32 and leaf.grad.count_nonzero() for leaf in leaves)


@pytest.mark.parametrize('in_dims', [(0, 0, 0, 0), (1, None, None, 0), (None, None, 2, None), (0, 1, None, None)])
def test_vmap(in_dims):
    """An example may have a weight of its own."""
    N, tensors = 3, make(torch.double, B=2)
    rng = torch.Generator().manual_seed(1)
    batched = [
        t
        if dim is None
        else torch.stack([t + 0.1 * torch.randn(t.shape, generator=rng, dtype=t.dtype) for _ in range(N)], dim)
        for t, dim in zip(tensors, in_dims)
    ]
    examples = [[t if dim is None else t.select(dim, i) for t, dim in zip(batched, in_dims)] for i in range(N)]
    expected = torch.stack([call(*example) for example in examples])
    torch.testing.assert_close(torch.func.vmap(call, in_dims)(*batched), expected)

    def grads(*tensors):
        arguments = *tensors[:3], *GEOMETRY, tensors[3]
        return BACKWARD(expected[0], *arguments, True, True, False)

    for got, one in zip(torch.func.vmap(grads, in_dims)(*batched), zip(*[grads(*example) for example in examples])):
        torch.testing.assert_close(got, torch.stack(one))


@pytest.mark.parametrize('modulated', [True, False])
def test_forward_mode_and_second_derivatives(modulated):
    tensors = leaves_of(make(torch.double, B=1, C=2, C_out=2, groups=1, G=1, size=(2, 3), modulated=modulated))
    options = dict(fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradcheck(call, tensors, check_backward_ad=False, **options)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)
    exact = torch.func.jacrev(by_reference, 2)(*tensors)
    torch.testing.assert_close(torch.func.jacrev(call, 2)(*tensors), exact)


def test_flops():
    """Five multiply-adds for a sample of a channel, one for each of its products; the backward pass twice that."""
    tensors = make()
    forward = 2 * (2 * 3 * 4) * 9 * (5 * 6 + 4 * 3)
    with FlopCounterMode(display=False) as counter:
        call(*tensors)
    assert counter.get_total_flops() == forward
    if _load.EXTENSION_LOADED:
        with FlopCounterMode(display=False) as counter:
            call(*leaves_of(tensors)).sum().backward()
        assert counter.get_total_flops() == 3 * forward


@pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='about the compiled kernel')
@pytest.mark.parametrize(
    ('dtype', 'groups'), [(torch.float32, 1), (torch.float32, 10), (torch.float64, 2), (torch.bfloat16, 2)], ids=str
)
def test_bitwise_equal_for_any_number_of_threads(dtype, groups):
    """Values and all gradients. Not in bf16 with one group, which may be PyTorch's product."""
    tensors = make(dtype, B=1, C=160, C_out=40, groups=groups, G=2, size=(39, 25))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = gradients(call, tensors)
        for n in (2, 3, 8):
            torch.set_num_threads(n)
            torch.testing.assert_close(gradients(call, tensors), expected, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize('modulated', [True, False])
def test_many_chunks(modulated):
    """More output cells, 950, and more channels of a group, 160, than have columns at a time."""
    tensors = make(B=1, C=320, C_out=4, groups=2, G=2, size=(37, 52), modulated=modulated)
    doubles = [tensor.double() for tensor in tensors]
    for got, expected in zip(gradients(call, tensors), gradients(by_reference, doubles)):
        scale = expected.abs().max().item()
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5 * scale)


def test_channels_last():
    tensors = make()
    other = [tensors[0].to(memory_format=torch.channels_last), *tensors[1:]]
    for got, expected in zip(gradients(call, other), gradients(call, tensors)):
        torch.testing.assert_close(got, expected)


def test_random_shapes():
    """The short form of shape_fuzz.py."""
    for number in range(60):
        check_random_shape('deform_conv2d', number)
