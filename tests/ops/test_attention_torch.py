"""The attention ops inside PyTorch: registrations, compile, export, autocast, vmap, derivatives beyond the first."""

import pytest
import torch
from attention_cases import KINDS, Case, assert_near
from torch.autograd import forward_ad

from mmdet_ddetr import ops

SMALL = dict(B=2, Q=2, M=1, D=3, K=2, shapes=[(3, 2), (1, 2)], dtype=torch.float64)


def backward_arguments(case):
    flags = (False,) if case.kind == 'locations' else (True, False)
    return case.grad_output, case.tensors[0], case.flat_shapes, *case.tensors[1:], *flags


def assert_equal(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


# --- what PyTorch checks itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_opcheck(kind, dtype, device):
    case = Case(kind, dtype=dtype, device=device)
    value, *points = case.leaves()
    torch.library.opcheck(getattr(torch.ops.mmdet_ddetr, case.name).default, (value, case.flat_shapes, *points))
    backward = getattr(torch.ops.mmdet_ddetr, f'{case.name}_backward').default
    torch.library.opcheck(backward, backward_arguments(case))


def test_opcheck_without_the_gradient_of_the_references(device):
    arguments = backward_arguments(Case('points', device=device))
    backward = torch.ops.mmdet_ddetr.ms_deform_attn_fused_backward.default
    torch.library.opcheck(backward, (*arguments[:-2], False, False))
    assert backward(*arguments[:-2], False, False)[1].shape == (0,)


@pytest.mark.parametrize('kind', KINDS)
def test_inference_mode(kind, device):
    case = Case(kind, device=device)
    with torch.inference_mode():
        assert_equal(case.call(*case.tensors), case.call(*case.leaves()).detach())


# --- compile and export ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dynamic', [pytest.param(False, marks=pytest.mark.slow), True], ids=['static', 'dynamic'])
def test_compile_fullgraph(kind, dynamic, device, reproducible):
    torch._dynamo.reset()
    cases = [Case(kind, device=device), Case(kind, Q=9, shapes=[(5, 7), (2, 3), (1, 2)], device=device)]
    for case in cases[: 1 + dynamic]:
        shapes = case.shapes

        def function(value, *points, shapes=shapes, name=case.name):
            return getattr(ops, name)(value * 2, shapes, *points) * 2

        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend='aot_eager')
        got, expected = case.forward_backward(compiled), case.forward_backward(function)
        for one, other in zip(got, expected):
            assert_equal(one, other)


@pytest.mark.parametrize('kind', KINDS)
def test_export_with_dynamic_maps(kind, device):
    """An exported model takes other map sizes: they come from the tensors' shapes and stay symbols."""

    class Model(torch.nn.Module):
        def forward(self, feature, *points):  # [B, H, W, M, D]
            H, W = feature.shape[1:3]
            return getattr(ops, case.name)(feature.flatten(1, 2), [(H, W)], *points)

    case = Case(kind, shapes=[(4, 5)], device=device)
    other = Case(kind, shapes=[(6, 3)], device=device)
    H, W = torch.export.Dim('H', min=1, max=100), torch.export.Dim('W', min=1, max=100)
    feature = case.tensors[0].unflatten(1, (4, 5))
    dynamic = ({1: H, 2: W}, tuple({} for _ in case.tensors[1:]))
    program = torch.export.export(Model(), (feature, *case.tensors[1:]), dynamic_shapes=dynamic)
    got = program.module()(other.tensors[0].unflatten(1, (6, 3)), *other.tensors[1:])
    assert_equal(got, other.call(*other.tensors))
    assert any(case.name in str(node.target) for node in program.graph.nodes)


# --- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_autocast_narrows_value_and_leaves_positions_alone(kind, device):
    case = Case(kind, device=device)
    leaves = case.leaves()
    with torch.autocast(device, dtype=torch.bfloat16):
        output = case.call(*leaves)
    assert output.dtype == torch.bfloat16
    assert_equal(output, case.call(leaves[0].bfloat16(), *leaves[1:]))
    output.sum().backward()
    assert all(leaf.grad.dtype == torch.float32 and leaf.grad.count_nonzero() for leaf in leaves)


def test_autocast_inside_of_a_row_of_cells(device):
    """A location that is fp32 stays so: in bf16, cell 256 of 257 would be cell 255 or 257."""
    value = torch.zeros(1, 257, 1, 1, device=device)
    value[0, 256] = 1
    location = torch.tensor([256.5 / 257, 0.5], device=device).view(1, 1, 1, 1, 1, 2)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = ops.ms_deform_attn(value, [(1, 257)], location, torch.ones(1, 1, 1, 1, 1, device=device))
    assert output.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize('kind', KINDS)
def test_autocast_takes_what_linear_layers_give(kind, device):
    """Offsets and logits in bf16 from linear layers beside references in fp32; fp64 is left alone."""
    case = Case(kind, device=device, points_dtype=torch.bfloat16)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = case.call(*case.tensors)
    expected = case.call(case.tensors[0].bfloat16(), *case.tensors[1:])
    assert_equal(output, expected)
    exact = Case(kind, device=device, dtype=torch.float64)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert case.call(*exact.tensors).dtype == torch.float64


@pytest.mark.parametrize('kind', KINDS)
def test_mixed_dtypes_are_aligned(kind, device):
    """The public functions take any floating dtypes; the op itself takes value's and the compute dtype."""
    case = Case(kind, dtype=torch.bfloat16, device=device)
    *others, last = case.tensors
    got = case.call(*others, last.half())
    assert_equal(got, case.call(*others, last.half().float()))


# --- vmap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('batched', [0, 1, 'all'], ids=str)
def test_vmap(kind, batched, device):
    cases = [Case(kind, seed=seed, device=device) for seed in range(3)]
    stacked = [torch.stack(tensors, dim) for dim, tensors in enumerate(zip(*[case.tensors for case in cases]))]
    in_dims = tuple(dim if batched in ('all', dim) else None for dim in range(len(stacked)))
    arguments = [t if dim is not None else cases[0].tensors[i] for i, (t, dim) in enumerate(zip(stacked, in_dims))]
    got = torch.vmap(cases[0].call, in_dims)(*arguments)
    for i, case in enumerate(cases):
        tensors = [case.tensors[j] if dim is not None else cases[0].tensors[j] for j, dim in enumerate(in_dims)]
        assert_equal(got[i], case.call(*tensors))


@pytest.mark.parametrize('kind', KINDS)
def test_batched_gradients(kind, device, reproducible):
    case = Case(kind, device=device)
    leaves = case.leaves()
    output = case.call(*leaves)
    cotangents = torch.randn(3, *output.shape, device=device)
    got = torch.autograd.grad(output, leaves, cotangents, is_grads_batched=True, retain_graph=True)
    for i, cotangent in enumerate(cotangents):
        for batched, one in zip(got, torch.autograd.grad(output, leaves, cotangent, retain_graph=True)):
            assert_equal(batched[i], one)


# --- derivatives beyond the first, and forwards --------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_double_backward(kind, device):
    case = Case(kind, device=device, **SMALL)
    assert torch.autograd.gradgradcheck(case.call, case.leaves(), fast_mode=True)


def test_double_backward_without_the_gradient_of_the_references(device):
    case = Case('points', device=device, **SMALL)
    references = case.tensors.pop(1)
    leaves = case.leaves()
    call = case.call
    assert torch.autograd.gradgradcheck(lambda v, *rest: call(v, references, *rest), leaves, fast_mode=True)


@pytest.mark.parametrize('kind', [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_forward_mode(kind, device):
    """Other implementations give a tangent of zeros here."""
    case = Case(kind, device=device, **SMALL)
    assert torch.autograd.gradcheck(case.call, case.leaves(), check_forward_ad=True, check_backward_ad=False)


@pytest.mark.parametrize('kind', KINDS)
def test_forward_mode_of_the_ops_themselves(kind, device):
    case = Case(kind, device=device, **SMALL)
    tangents = [torch.randn_like(tensor) for tensor in case.tensors]
    _, expected = torch.func.jvp(case.reference_by_gather, tuple(case.tensors), tuple(tangents))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(case.tensors, tangents)]
        output = getattr(torch.ops.mmdet_ddetr, case.name)(duals[0], case.flat_shapes, *duals[1:])
        torch.testing.assert_close(forward_ad.unpack_dual(output).tangent, expected)


@pytest.mark.parametrize('kind', KINDS)
def test_torch_func(kind, device):
    case = Case(kind, device=device, **SMALL)

    def loss(*tensors):
        return (case.call(*tensors) * case.grad_output).sum()

    everything = tuple(range(len(case.tensors)))
    for got, exact in zip(torch.func.grad(loss, everything)(*case.tensors), case.oracle()[1:]):
        torch.testing.assert_close(got, exact)
    hessian = torch.func.hessian(loss, 0)(*case.tensors)
    assert hessian.count_nonzero() == 0  # linear in value
    last = everything[-1]
    columns = torch.func.jacrev(torch.func.grad(loss, last), 0)(*case.tensors)
    assert columns.count_nonzero() > 0


def test_gradient_penalty(device):
    """A double backward in fp32 on the usual path: gradients of the norm of gradients agree with the reference's."""
    case = Case('points', device=device)

    def penalty(function):
        leaves = case.leaves()
        grads = torch.autograd.grad(function(*leaves), leaves, case.grad_output, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves)

    exact = Case('points', device=device)
    exact.tensors = [tensor.double() for tensor in case.tensors]
    exact.grad_output = case.grad_output.double()
    got = penalty(case.call)
    case = exact
    assert_near(got, penalty(case.reference_by_gather))
