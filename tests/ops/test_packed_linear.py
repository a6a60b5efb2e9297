"""Linear layers with packed weights: values by hand and against fp64, and inside PyTorch."""

from math import inf

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmdet_ddetr.ops import _load, reference
from mmdet_ddetr.ops.packed_linear import pack

OP = torch.ops.mmdet_ddetr.packed_linear.default
# rows of x, C_in, C_out: around the tiles of every instruction set, and more than a block of rows
SIZES = [
    ((1,), 5, 3),
    ((3,), 1, 16),
    ((4,), 7, 17),
    ((11,), 64, 31),
    ((12,), 20, 32),
    ((13,), 33, 48),
    ((2, 3, 5), 24, 144),
    ((100,), 1152, 40),
    ((3, 67), 400, 65),
    ((9000,), 16, 24),
]


def make(sizes):
    rows, C_in, C_out = sizes
    rng = torch.Generator().manual_seed(0)
    shapes = (*rows, C_in), (C_out, C_in), (C_out,), (*rows, C_out)
    return [torch.randn(shape, generator=rng) for shape in shapes]


def test_by_hand():
    """[2, 3] times a weight of two outputs, a bias, a sum, and bounds that one number of each side exceeds."""
    x = torch.tensor([[1.0, 2, 3], [-4, 5, 6]])
    packed = pack(torch.tensor([[1.0, 10, 100], [1, 0, -1]]))
    assert packed.shape == (1, 3, 32) and packed[0, :, :2].T.tolist() == [[1, 10, 100], [1, 0, -1]]
    bias, add = torch.tensor([0.5, -0.5]), torch.tensor([[1000.0, 0], [0, 2000]])
    assert OP(x, packed, bias, None, -inf, inf).tolist() == [[321.5, -2.5], [646.5, -10.5]]
    assert OP(x, packed, bias, add, -2.0, 1500.0).tolist() == [[1321.5, -2], [646.5, 1500]]


@pytest.mark.parametrize('bounds', [(-inf, inf), (0.0, inf), (0.0, 6.0)])
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_values(sizes, bounds):
    x, weight, bias, add = make(sizes)
    for more in (None, add):
        output = OP(x, pack(weight), bias, more, *bounds)
        exact = F.linear(x.double(), weight.double(), bias.double())
        scale = F.linear(x.double().abs(), weight.double().abs()).max()
        exact = (exact if more is None else exact + more).clamp(*bounds)
        assert output.dtype == torch.float and output.shape == exact.shape
        assert (output - exact).abs().max() <= 1e-6 * scale + 1e-6
        torch.testing.assert_close(
            reference.packed_linear(x, pack(weight), bias, more, *bounds), output, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize('sizes', [((0,), 4, 5), ((3,), 4, 0), ((3,), 0, 5), ((2, 0), 4, 40), ((), 4, 5)], ids=str)
def test_empty(sizes):
    """Without inputs, the bias is left; without rows' dimensions, there is one row."""
    x, weight, bias, add = make(sizes)
    torch.testing.assert_close(OP(x, pack(weight), bias, add, -inf, inf), F.linear(x, weight, bias) + add)


def test_not_a_number_stays():
    x, weight, bias, _ = make(SIZES[5])
    x[4, 7] = torch.nan
    output = OP(x, pack(weight), bias, None, 0.0, 6.0)
    assert output[4].isnan().all() and output.isnan().sum() == output.shape[1]


def test_any_layout():
    x, weight, bias, add = make(((6, 5), 33, 48))
    expected = OP(x, pack(weight), bias, add, 0.0, 6.0)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, add)]
    assert torch.equal(OP(turned[0], pack(weight), bias, turned[1], 0.0, 6.0), expected)
    shifted = [torch.cat([torch.zeros(1), t.flatten()])[1:].view(t.shape) for t in (x, pack(weight), bias, add)]
    assert torch.equal(OP(*shifted, 0.0, 6.0), expected)


@pytest.fixture
def threads():
    """Their number is set back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_and_other_rows_change_nothing(threads):
    x, weight, bias, add = make(((2000,), 200, 100))
    packed, results = pack(weight), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(OP(x, packed, bias, add, 0.0, inf))
    assert all(torch.equal(result, results[0]) for result in results[1:])
    if _load.EXTENSION_LOADED:
        for rows in (slice(5, 6), slice(7, 15), slice(1001, 1900)):
            assert torch.equal(OP(x[rows], packed, bias, add[rows], 0.0, inf), results[0][rows])


@pytest.mark.parametrize('with_add', [True, False])
def test_opcheck(with_add):
    x, weight, bias, add = make(SIZES[6])
    torch.library.opcheck(OP, (x, pack(weight), bias, add if with_add else None, 0.0, 6.0))


def test_operations_are_counted():
    x, weight, bias, _ = make(SIZES[6])
    with FlopCounterMode(display=False) as counter:
        OP(x, pack(weight), bias, None, 0.0, 6.0)
    assert counter.get_total_flops() == 2 * 30 * 24 * 144


FITTING = dict(
    x=torch.zeros(2, 3, 4), packed=torch.zeros(2, 4, 32), bias=torch.zeros(40), add=torch.zeros(2, 3, 40), low=0, high=6
)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(x=torch.zeros(())), r'x must be \[\.\.\., C_in\], got \[\]'),
        (dict(x=torch.zeros(2, 3, 5)), r'packed must be \[panels, C_in, 32\] = \[2, 5, 32\], got \[2, 4, 32\]'),
        (dict(packed=torch.zeros(1, 4, 32)), r'packed must be .* = \[2, 4, 32\], got \[1, 4, 32\]'),
        (dict(packed=torch.zeros(2, 4, 16)), r'packed must be .* got \[2, 4, 16\]'),
        (dict(bias=torch.zeros(40, 1)), r'bias must be \[C_out\], got \[40, 1\]'),
        (dict(add=torch.zeros(2, 40)), r'add must be \[\.\.\., C_out\] .* got \[2, 40\]'),
        (dict(add=torch.zeros(2, 2, 40)), r'add must be \[\.\.\., C_out\] .* got \[2, 2, 40\]'),
        (dict(x=torch.zeros(2, 3, 4).double()), 'all arguments must be fp32, got'),
        (dict(add=torch.zeros(2, 3, 40).half()), 'all arguments must be fp32, got'),
    ],
)
def test_errors_name_the_argument(change, message, call):
    with pytest.raises(RuntimeError, match=message):
        call(OP, {**FITTING, **change})
