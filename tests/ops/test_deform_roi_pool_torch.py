"""Deformable RoI pooling inside PyTorch: registrations, compile, autocast, vmap, derivatives, threads, fuzz."""

import pytest
import torch
from shape_fuzz import check_random_shape
from torch.utils.flop_counter import FlopCounterMode

from mmdet_ddetr.ops import _load, deform_ps_roi_pool, deform_roi_pool

OP = torch.ops.mmdet_ddetr.deform_roi_pool.default
BACKWARD = torch.ops.mmdet_ddetr.deform_roi_pool_backward.default
KINDS = {'plain': ([2, 3], 0.25, 2, 0.4, 1, False), 'position-sensitive': ([2, 3], 0.25, 3, 0.4, 2, True)}


@pytest.fixture(params=KINDS)
def options(request):
    return KINDS[request.param]


def make(options, dtype=torch.float32, B=2, D=3, K=2, R=5, size=(5, 6)):
    """input, rois and offset."""
    (h, w), *_, group_size, _ = options
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(R, 2, generator=rng, dtype=torch.double) * 12
    rois = torch.cat((corners, corners + torch.rand(R, 2, generator=rng, dtype=torch.double) * 20), 1)
    rois = torch.cat((torch.arange(R).double()[:, None] % B, rois), 1)
    input = torch.randn(B, D * K * group_size**2, *size, generator=rng, dtype=torch.double)
    offset = torch.randn(R, 2 * K, h, w, generator=rng, dtype=torch.double)
    return [tensor.to(dtype) for tensor in (input, rois, offset)]


def gradients(function, input, rois, offset):
    leaves = input.detach().requires_grad_(), offset.detach().requires_grad_()
    output = function(leaves[0], rois, leaves[1])
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return output.detach(), *torch.autograd.grad(output, leaves, weights)


@pytest.mark.parametrize('moved', [True, False])
def test_opcheck(options, moved):
    input, rois, offset = make(options)
    offset = offset.requires_grad_() if moved else None
    arguments = input.requires_grad_(), rois, offset, *options
    torch.library.opcheck(OP, arguments)
    grad_output = torch.randn_like(OP(*arguments))
    arguments = [argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    for flags in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(BACKWARD, (grad_output, *arguments, *flags, False))


@pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='plain PyTorch gives all gradients')
def test_gradients_on_request_only(options):
    tensors = make(options)
    arguments = torch.randn_like(OP(*tensors, *options)), *tensors, *options
    everything = BACKWARD(*arguments, True, True, False)
    for flags in ((True, False), (False, True)):
        for got, expected, asked in zip(BACKWARD(*arguments, *flags, False), everything, flags):
            torch.testing.assert_close(got, expected if asked else expected.new_empty(0), rtol=0, atol=0)


@pytest.mark.parametrize('dynamic', [False, True], ids=['static', 'dynamic'])
def test_compile_fullgraph(options, dynamic):
    torch._dynamo.reset()

    def call(input, rois, offset):
        return OP(input * 2, rois, offset, *options)

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend='aot_eager')
    for R, size in ((5, (5, 6)), (7, (7, 9)))[: 1 + dynamic]:
        tensors = make(options, R=R, size=size)
        for got, expected in zip(gradients(compiled, *tensors), gradients(call, *tensors)):
            torch.testing.assert_close(got, expected)


class Pool(torch.nn.Module):
    """The public functions, with arguments that ``make`` gives."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, input, rois, offset):
        if self.function == 'plain':
            return deform_roi_pool(input, rois, offset, 2, 0.25)
        return deform_ps_roi_pool(input, rois, offset, 0.25, 3, 2, 3, part_size=2)


@pytest.mark.parametrize('function', ['plain', 'position-sensitive'])
def test_functions_compile_fullgraph(function):
    torch._dynamo.reset()
    call = Pool(function)
    input, rois, offset = make(KINDS[function], K=1)
    offset = offset[..., :2]
    compiled = torch.compile(call, fullgraph=True, backend='aot_eager')
    for got, expected in zip(gradients(compiled, input, rois, offset), gradients(call, input, rois, offset)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('function', ['plain', 'position-sensitive'])
def test_one_graph_for_any_number_of_rois(function):
    """Every image has another number of them."""
    call, R = Pool(function), torch.export.Dim('R')
    input, rois, offset = make(KINDS[function], K=1)
    offset = offset[..., :2]
    program = torch.export.export(call, (input, rois, offset), dynamic_shapes=(None, {0: R}, {0: R}))
    assert torch.equal(program.module()(input, rois[:1], offset[:1]), call(input, rois[:1], offset[:1]))


@pytest.mark.parametrize('function', ['plain', 'position-sensitive'])
def test_shapes_of_gradients_on_meta(function):
    input, rois, offset = (x.to('meta') for x in make(KINDS[function], K=1))
    _, *grads = gradients(Pool(function), input, rois, offset[..., :2])
    assert [grad.shape for grad in grads] == [input.shape, offset[..., :2].shape]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast_leaves_input_alone(options, dtype):
    """Offsets may come from a layer that autocast has narrowed, and are as exact as they are."""
    input, rois, offset = make(options)
    input, offset = input.to(dtype).requires_grad_(), offset.bfloat16().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        output = OP(input, rois, offset, *options)
        assert OP(input.double(), rois.double(), offset.double(), *options).dtype == torch.float64
    assert output.dtype == dtype
    torch.testing.assert_close(output, OP(input, rois, offset.float(), *options), rtol=0, atol=0)
    output.sum().backward()
    assert all(leaf.grad.dtype == leaf.dtype and leaf.grad.count_nonzero() for leaf in (input, offset))


@pytest.mark.parametrize('in_dims', [(0, None, None), (1, 0, 2), (None, 1, 0), (None, None, 3)])
def test_vmap(options, in_dims):
    N, tensors = 3, make(options, torch.double)
    rng = torch.Generator().manual_seed(1)

    def another(tensor):
        noise = 0.1 * torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype)
        if tensor.shape[1] == 5:
            noise[:, 0] = 0  # the images of RoIs
        return tensor + noise

    batched = [
        t if dim is None else torch.stack([another(t) for _ in range(N)], dim) for t, dim in zip(tensors, in_dims)
    ]
    examples = [[t if dim is None else t.select(dim, i) for t, dim in zip(batched, in_dims)] for i in range(N)]

    def call(*tensors):
        return OP(*tensors, *options)

    expected = torch.stack([call(*example) for example in examples])
    torch.testing.assert_close(torch.func.vmap(call, in_dims)(*batched), expected)

    def grads(*tensors):
        return BACKWARD(expected[0], *tensors, *options, True, True, False)

    for got, one in zip(torch.func.vmap(grads, in_dims)(*batched), zip(*[grads(*example) for example in examples])):
        torch.testing.assert_close(got, torch.stack(one))


def test_forward_mode_and_second_derivatives(options):
    input, rois, offset = make(options, torch.double, B=1, D=1, R=2, size=(3, 4))
    leaves = input.requires_grad_(), offset.requires_grad_()

    def call(input, offset):
        return OP(input, rois, offset, *options)

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True, check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
    exact = torch.autograd.functional.jacobian(lambda o: call(input, o), offset)
    torch.testing.assert_close(torch.func.jacrev(call, 1)(input, offset), exact)


def test_flops(options):
    """Five multiply-adds for a sample of a channel; the backward pass twice that."""
    input, rois, offset = make(options)
    forward = 2 * 5 * 5 * (2 * 3) * options[2] ** 2 * 6
    with FlopCounterMode(display=False) as counter:
        OP(input, rois, offset, *options)
    assert counter.get_total_flops() == forward
    if _load.EXTENSION_LOADED:
        with FlopCounterMode(display=False) as counter:
            OP(input.requires_grad_(), rois, offset, *options).sum().backward()
        assert counter.get_total_flops() == 3 * forward


@pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='about the compiled kernel')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_the_same_for_any_number_of_threads(options, dtype):
    tensors = make(options, dtype, D=37, R=90)

    def call(*tensors):
        return OP(*tensors, *options)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = gradients(call, *tensors)
        for n in (2, 3, 8):
            torch.set_num_threads(n)
            for got, one in zip(gradients(call, *tensors), expected):
                torch.testing.assert_close(got, one, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize('op', ['deform_roi_pool', 'deform_ps_roi_pool'])
def test_random_shapes(op):
    """The short form of shape_fuzz.py."""
    for number in range(60):
        check_random_shape(op, number)
