"""Dropout: which elements stay, how well they are shuffled, gradients, and inside PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from mmdet_ddetr import ops
from mmdet_ddetr.ops import _load, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
BLOCK = 2**14  # elements that share a key
OP = torch.ops.mmdet_ddetr.dropout.default

needs_extension = pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='the extension is not built')


def seed_of(number):
    return torch.tensor(number)


def kept(size, p, seed):
    """Which of ``size`` elements stay."""
    return OP(torch.ones(size), p, seed_of(seed)) != 0


def correlation(a, b):
    """In units of its standard deviation for independent elements."""
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1]) * math.sqrt(len(a))


# --- values -----------------------------------------------------------------------------------------------------------


@needs_extension
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('p', [0.0, 1e-3, 0.1, 0.5, 0.9, 1.0])
def test_against_reference(p, dtype):
    """Every bit, for sizes around the width of a vector and of a block, and seeds with either half empty."""
    for size in (*range(34), BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17):
        for seed in (0, 1, -1, 1 << 32, -(1 << 63), 0x0123456789ABCDEF):
            input = torch.randn(size).to(dtype)
            output = OP(input, p, seed_of(seed))
            assert output.dtype == dtype
            assert torch.equal(output, reference.dropout(input, p, seed_of(seed)))


@needs_extension
def test_known_bits():
    """Written down: a mask that changes would change trainings."""
    assert ''.join(map(str, kept(32, 0.5, 42).int().tolist())) == '10010100111010011111010001000001'


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('p', [0.01, 0.1, 0.5, 0.9])
def test_share_and_scale(p, dtype):
    output = ops.dropout(torch.full((500, 999), 3.0, dtype=dtype), p)
    n, dropped = output.numel(), int((output == 0).sum())
    assert abs(dropped - n * p) < 5 * math.sqrt(n * p * (1 - p))
    expected = torch.tensor(3 * float(torch.tensor(1 / (1 - p))), dtype=dtype)
    torch.testing.assert_close(output.unique(), torch.stack([torch.zeros_like(expected), expected]))


@needs_extension
def test_what_is_dropped_is_zero():
    for bad in (math.nan, math.inf, -math.inf):
        stays = kept(1000, 0.5, 7)
        output = OP(torch.full((1000,), bad), 0.5, seed_of(7))
        assert (output[~stays] == 0).all()
        assert not output[stays].isfinite().any()


@pytest.mark.parametrize('shape', [(0,), (3, 0, 5)])
def test_empty(shape):
    input = torch.zeros(shape, requires_grad=True)
    output = ops.dropout(input, 0.5)
    assert output.shape == shape
    assert torch.autograd.grad(output.sum(), input)[0].shape == shape


@needs_extension
def test_any_layout():
    input = torch.randn(17, 9, 5)
    expected = OP(input, 0.3, seed_of(1))
    for view in (input.transpose(0, 2).contiguous().transpose(0, 2), torch.stack([input, input], -1)[..., 1]):
        assert not view.is_contiguous()
        output = OP(view, 0.3, seed_of(1))
        assert output.is_contiguous()
        assert torch.equal(output, expected)
    assert torch.equal(OP(input.flatten(), 0.3, seed_of(1)).view(17, 9, 5), expected)
    shifted = torch.cat([torch.zeros(1), input.flatten()])[1:]
    assert torch.equal(OP(shifted, 0.3, seed_of(1)).view(17, 9, 5), expected)


@needs_extension
def test_same_for_any_number_of_threads():
    input = torch.randn(9 * BLOCK + 5, requires_grad=True)
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        output = OP(input, 0.1, seed_of(5))
        runs.append((output, *torch.autograd.grad(output, input, input.detach())))
    torch.set_num_threads(1)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


def test_identity():
    input = torch.randn(5)
    assert ops.dropout(input, 0.5, training=False) is input
    assert ops.dropout(input, 0.0) is input
    assert not ops.dropout(input, 1.0).any()


# --- the random numbers: all bounds are 5 standard deviations and more ------------------------------------------------


@needs_extension
@pytest.mark.parametrize('lag', [1, 2, 3, 16, 256, 1024, BLOCK])
@pytest.mark.parametrize('p', [0.1, 0.5])
def test_elements_are_independent(p, lag):
    """Neighbours, rows of usual widths, the same place in two blocks."""
    stays = kept(2**20, p, 3)
    assert abs(correlation(stays[:-lag], stays[lag:])) < 5


@needs_extension
@pytest.mark.parametrize('difference', [1, 2, 1 << 31, 1 << 32, 1 << 62])
@pytest.mark.parametrize('p', [0.1, 0.5])
def test_seeds_are_independent(p, difference):
    for seed in (0, 1, 1234567):
        assert abs(correlation(kept(2**18, p, seed), kept(2**18, p, seed + difference))) < 5


@needs_extension
def test_runs_of_eight():
    """Each of the 256 patterns is as frequent as the others: chi-square with 255 degrees of freedom."""
    stays = kept(2**20, 0.5, 11).view(-1, 8).int()
    counts = (stays << torch.arange(8)).sum(1).bincount(minlength=256).double()
    mean = counts.sum() / 256
    assert abs(float(((counts - mean) ** 2 / mean).sum()) - 255) < 5 * math.sqrt(2 * 255)


@needs_extension
@pytest.mark.parametrize('C', [256, 250])
def test_channels_are_independent(C):
    """No channel is favoured and no two go together; the largest of 32,640 pairs is 4.2 deviations off as a rule."""
    rows = 4096
    stays = kept(rows * C, 0.1, 19).view(rows, C).double()
    share = stays.mean(0)
    assert (share - 0.9).abs().max() < 5 * math.sqrt(0.1 * 0.9 / rows)
    correlations = torch.corrcoef(stays.T) - torch.eye(C, dtype=torch.float64)
    assert correlations.abs().max() * math.sqrt(rows) < 6


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_seed_is_of_the_default_generator():
    input = torch.ones(1000)
    first, second = ops.dropout(input), ops.dropout(input)
    torch.manual_seed(0)
    assert torch.equal(ops.dropout(input), first)
    assert not torch.equal(first, second)
    with torch.random.fork_rng(devices=[]):
        assert torch.equal(ops.dropout(input), second)
    assert torch.equal(ops.dropout(input), second)


@pytest.mark.parametrize('use_reentrant', [True, False])
def test_activation_checkpointing(use_reentrant):
    inputs = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=use_reentrant)):
        torch.manual_seed(1)
        input = torch.linspace(1, 2, 1000).requires_grad_()
        output = run(lambda x: ops.dropout(x.square(), 0.5), input)
        torch.rand(3)  # moves the generator between the two forward passes
        output.sum().backward()
        inputs.append(input)
    assert torch.equal(*(input.grad for input in inputs))
    assert 300 < (inputs[0].grad == 0).sum() < 700


@needs_extension
def test_keeps_the_seed_alone():
    input = torch.ones(1000, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        ops.dropout(input)
    assert [(x.dtype, x.numel()) for x in saved] == [(torch.int64, 1)]


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_gradient_is_the_mask_times_the_scale(dtype):
    input = torch.ones(999, dtype=dtype, requires_grad=True)
    output = ops.dropout(input, 0.3)
    (grad,) = torch.autograd.grad(output.sum(), input)
    assert 200 < (grad == 0).sum() < 400
    torch.testing.assert_close(grad, output.detach(), rtol=0, atol=0)


@needs_extension
def test_gradcheck():
    def function(x):
        return OP(x, 0.4, seed_of(3))

    input = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, input)
    assert torch.autograd.gradgradcheck(function, input)


# --- inside of PyTorch ------------------------------------------------------------------------------------------------


@needs_extension
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    torch.library.opcheck(OP, (torch.randn(6, 3, dtype=dtype, requires_grad=True), 0.5, seed_of(1)))
    torch.library.opcheck(OP, (torch.randn(6, 3, dtype=dtype).T, 0.5, seed_of(1)))


@pytest.mark.parametrize('dynamic', [False, True], ids=['static', 'dynamic'])
def test_compile_fullgraph(dynamic):
    """PyTorch's own dropout, which its compiler fuses: the same numbers from the same generator."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: ops.dropout(x * 2, 0.3) * 2, fullgraph=True, dynamic=dynamic, backend='aot_eager'
    )
    for size in (6, 11)[: 1 + dynamic]:
        input = torch.ones(size, 100, requires_grad=True)
        torch.manual_seed(2)
        output = compiled(input)
        torch.manual_seed(2)
        torch.testing.assert_close(output, F.dropout(input * 2, 0.3) * 2)
        (grad,) = torch.autograd.grad(output.sum(), input)
        torch.testing.assert_close(grad, output.detach())


def test_forward_mode_and_vmap():
    input = torch.ones(1000)
    output, tangent = torch.func.jvp(lambda x: ops.dropout(x, 0.5), (input,), (3 * input,))
    torch.testing.assert_close(tangent, 3 * output)
    assert 300 < (output == 0).sum() < 700
    rows = torch.vmap(lambda x: ops.dropout(x, 0.5), randomness='different')(torch.ones(2, 1000))
    assert not torch.equal(*rows)


def test_dtype_under_autocast():
    input = torch.ones(9, dtype=torch.bfloat16)
    with torch.autocast('cpu', dtype=torch.float16):
        assert ops.dropout(input).dtype == torch.bfloat16


@pytest.mark.parametrize('p', [-0.1, 1.5, math.nan])
def test_bad_p(p):
    match = rf'p must be in \[0, 1\], got {p}'
    with pytest.raises(ValueError, match=match):
        ops.dropout(torch.ones(3), p)
    with pytest.raises(ValueError, match=match):
        ops.dropout(torch.ones(3), p, training=False)
    if _load.EXTENSION_LOADED:
        with pytest.raises(RuntimeError, match=match):
            OP(torch.ones(3), p, seed_of(0))


@needs_extension
def test_errors_name_the_argument():
    with pytest.raises(RuntimeError, match='input must be fp64, fp32, fp16 or bf16, got Int'):
        ops.dropout(torch.ones(3, dtype=torch.int32))
    with pytest.raises(RuntimeError, match='seed must be int64, got Int'):
        OP(torch.ones(3), 0.5, seed_of(0).int())
    with pytest.raises(RuntimeError, match=r'seed must be one number, got \[2\]'):
        OP(torch.ones(3), 0.5, torch.tensor([0, 1]))
