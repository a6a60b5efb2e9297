"""Arguments that do not fit: sizes that overflow, and calls of every kind of which none may end the process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_cases import KINDS, Case

from mmdet_ddetr import ops
from mmdet_ddetr.ops import _checks, _load

FUZZ = Path(__file__).with_name('argument_fuzz.py')
MEGABYTES = 12_000  # of address space: a larger tensor raises
COMPILED = [pytest.param('cpu', marks=pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='not compiled')), 'meta']


def fuzz(seed, calls):
    command = [sys.executable, FUZZ, str(seed), str(calls), str(MEGABYTES)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, f'{" ".join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-3000:]}'
    return done.stdout


def test_no_call_ends_the_process():
    assert "'accepted'" in fuzz(seed=0, calls=150)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(1, 5))
def test_no_call_of_many_ends_the_process(seed):
    fuzz(seed, calls=10_000)


# --- sizes -----------------------------------------------------------------------------------------------------------


def empty_case(shapes, device, dtype=torch.float32, kind='locations', S=0):
    """No memory, whatever shapes say: an image of S cells without heads."""
    case = Case(kind, B=1, Q=1, M=0, shapes=[(0, 0)] * len(shapes), dtype=dtype)
    case.shapes = shapes
    case.tensors = [tensor.to(device) for tensor in case.tensors]
    case.tensors[0] = torch.empty(1, S, 0, 8, device=device, dtype=dtype)
    return case


@pytest.mark.parametrize('device', COMPILED)
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('shapes', 'message'),
    [
        ([(2**32, 2**32)], r'at most 16777216 in height and width .* got \(4294967296, 4294967296\)'),  # 0 in 64 bits
        ([(2**62, 4)], r'at most 16777216 .* got \(4611686018427387904, 4\)'),
        ([(1, 2**24 + 1)], r'at most 16777216 .* got \(1, 16777217\)'),  # in fp32 it is 2^24
        ([(0, 2**40)], r'at most 16777216 .* got \(0, 1099511627776\)'),
        ([(2**24, 128)], r'at most 2147483647 cells, got 2147483648 up to \(16777216, 128\)'),
        ([(1, 1), (2**24, 127), (2**23, 2)], r'at most 2147483647 cells, got 2147483649 up to \(8388608, 2\)'),
        ([(-1, -(2**31))], r'must not be negative, got \(-1, -2147483648\)'),
        ([(2**24, 127)], r'give 2130706432 cells, but value .* has 0'),
    ],
)
def test_sizes_that_overflow(kind, shapes, message, device):
    case = empty_case(shapes, device, kind=kind)
    with pytest.raises(RuntimeError, match=message):
        case.call(*case.tensors)
    backward = getattr(torch.ops.mmdet_ddetr, f'{case.name}_backward')
    flags = (True, False) if kind != 'locations' else (False,)
    with pytest.raises(RuntimeError, match=message):
        backward(torch.empty(1, 1, 0, device=device), case.tensors[0], case.flat_shapes, *case.tensors[1:], *flags)


@pytest.mark.parametrize('device', COMPILED)
def test_the_largest_map(device):
    case = empty_case([(2**24, 127), (1, 2**24 - 1)], device, S=2**31 - 1)
    assert case.call(*case.tensors).shape == (1, 1, 0)
    case = empty_case([(1, 2**31 - 1)], device, dtype=torch.float64, S=2**31 - 1)  # fp64 counts further
    assert case.call(*case.tensors).shape == (1, 1, 0)
    with pytest.raises(RuntimeError, match='at most 2147483647 in height and width'):
        case = empty_case([(1, 2**31)], device, dtype=torch.float64)
        case.call(*case.tensors)


def test_every_cell_of_a_wide_map_is_found():
    """The last cells of a map of 1 x 2^24: fp32 still counts them."""
    W = 2**24
    value = torch.zeros(1, W, 1, 1, dtype=torch.bfloat16)
    value[0, -2:, 0, 0] = torch.tensor([3.0, 5.0])
    reference = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    offsets = torch.tensor([[-1.0, 0.0], [0.0, 0.0]]).view(1, 1, 1, 1, 2, 2)  # from W - 0.5, which rounds to W
    output = ops.ms_deform_attn_fused(value, [(1, W)], reference, offsets, torch.zeros(1, 1, 1, 2))
    assert output.item() == 2.5  # half of the last cell; the other point lies a cell away


@pytest.mark.parametrize('device', COMPILED)
def test_many_queries_of_no_heads_take_no_time(device):
    Q = 2**40
    value, weights = torch.empty(1, 1, 0, 8, device=device), torch.empty(1, Q, 0, 1, 1, device=device)
    locations = torch.empty(1, Q, 0, 1, 1, 2, device=device)
    assert ops.ms_deform_attn(value, [(1, 1)], locations, weights).shape == (1, Q, 0)
    grads = torch.ops.mmdet_ddetr.ms_deform_attn_backward(
        torch.empty(1, Q, 0, device=device), value, [1, 1], locations, weights, False
    )
    assert [grad.shape for grad in grads] == [value.shape, locations.shape, weights.shape]


@pytest.mark.parametrize('device', COMPILED)
def test_products_that_overflow(device):
    """Sizes beside a zero are not bounded by memory."""

    def huge(*shape):
        return torch.empty(0, device=device).as_strided(shape, [0] * len(shape))

    with pytest.raises(
        RuntimeError, match=r'a cell of value must have less than 2\^63 elements, got \[1099511627776, '
    ):
        ops.ms_deform_attn(huge(0, 0, 2**40, 2**40), [], huge(0, 1, 2**40, 0, 1, 2), huge(0, 1, 2**40, 0, 1))
    with pytest.raises(RuntimeError, match=r'attention weights must have less than 2\^63 elements, got \[2, 46116860'):
        ops.ms_deform_attn(huge(0, 0, 1, 1), [(0, 0)] * 2, huge(0, 1, 1, 2, 2**62, 2), huge(0, 1, 1, 2, 2**62))
    T, zero = 2**40, torch.zeros((), device=device)
    numbers, targets = zero.long().expand(T), zero.expand(T, 4)
    with pytest.raises(RuntimeError, match=r'the cost must have less than 2\^63 elements, got \[1099511627776, 10995'):
        ops.matching_cost(huge(T, 0, 1, 1), huge(T, 0, 1, 4), numbers, numbers, targets, 1, 1, 1)


def test_cpp_and_python_know_the_same_limits():
    text = Path(__file__).parents[2].joinpath('csrc', 'sizes.h')
    if not text.exists():
        pytest.skip('no sources beside the tests')
    assert 'kMostCells = std::numeric_limits<int32_t>::max()' in text.read_text()
    assert 'int64_t{1} << 24' in text.read_text()
    assert _checks.most_rows(torch.float64) == _checks.MOST_CELLS == 2**31 - 1
    assert _checks.most_rows(torch.bfloat16) == 2**24


# --- devices, layouts and types -------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_other_devices_and_layouts_are_named(kind):
    case = Case(kind, B=1, Q=2)
    for i in range(1, len(case.tensors)):
        for change, message in (
            (lambda tensor: tensor.to('meta'), "must be on value's device"),
            (lambda tensor: tensor.to_sparse(), 'must be a dense tensor, got one of layout torch.sparse_coo'),
        ):
            tensors = list(case.tensors)
            tensors[i] = change(tensors[i])
            with pytest.raises(RuntimeError, match=message):
                case.call(*tensors)


@pytest.mark.parametrize('kind', KINDS)
def test_tensors_with_a_pending_sign_or_conjugation(kind):
    """The imaginary part of a conjugate is stored with the other sign."""
    case = Case(kind)
    expected = case.call(*case.tensors)
    tensors = [torch.complex(tensor, -tensor).conj().imag for tensor in case.tensors]
    assert all(tensor.is_neg() for tensor in tensors)
    torch.testing.assert_close(case.call(*tensors), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(stride=0), r'stride must be at least 1 and at most 2147483647, got \(0, 0\)'),
        (dict(padding=-1), r'padding must be at least 0 and at most 2147483647, got \(-1, -1\)'),
        (dict(dilation=(1, 2, 3)), 'dilation must be two integers, got 3'),
        (dict(weight=torch.zeros(2, 0, 1, 1)), r'weight must be \[C_out, C/groups, kh, kw\]'),
        (dict(weight=torch.zeros(2, 4, 0, 1)), r'weight must be \[C_out, C/groups, kh, kw\]'),
        (dict(weight=torch.zeros(2, 4, 1)), r'weight must have 4 dimensions, got \[2, 4, 1\]'),
        (dict(bias=torch.zeros(3)), r'bias must be \[C_out\] = \[2\], got \[3\]'),
        (dict(weight=torch.zeros(2, 4, 1, 1).int()), 'weight must be .* got'),
        (dict(offset=torch.zeros(1, 2, 3, 3).int()), 'offset must be .* got'),
        (dict(mask=torch.ones(1, 1, 3, 3, device='meta')), "mask must be on input's device cpu, but it is on meta"),
        (dict(padding=2**62), r'padding must be .* got \(4611686018427387904, '),
    ],
    ids=str,
)
def test_deform_conv2d(change, message):
    arguments = dict(input=torch.zeros(1, 4, 3, 3), offset=torch.zeros(1, 2, 3, 3), weight=torch.zeros(2, 4, 1, 1))
    assert ops.deform_conv2d(**arguments).shape == (1, 2, 3, 3)
    with pytest.raises(RuntimeError, match=message):
        ops.deform_conv2d(**{**arguments, **change})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(input=torch.zeros(4, 3, 3)), r'input must be \[B, C, H, W\], got \[4, 3, 3\]'),
        (dict(rois=torch.zeros(2, 4)), r'rois must be \[R, 5\], got \[2, 4\]'),
        (dict(rois=torch.zeros(2, 5).int()), 'rois must be .* got'),
        (dict(rois=torch.zeros(2, 5, device='meta')), "rois must be on input's device cpu, but it is on meta"),
        (dict(offset=torch.zeros(2, 2, 3, 2)), r'offset must be \[R, 2, h, w\] = \[2, 2, 2, 3\], got \[2, 2, 3, 2\]'),
        (dict(output_size=0), r'output_size must be at least 1 and at most 2147483647, got \(0, 0\)'),
        (dict(spatial_scale=-0.25), 'spatial_scale must be a positive number, got -0.25'),
        (dict(gamma=float('inf')), 'gamma must be finite, got inf'),
        (dict(sampling_ratio=1025), 'sampling_ratio must be at most 1024, got 1025'),
    ],
    ids=str,
)
def test_deform_roi_pool(change, message):
    arguments = dict(input=torch.zeros(1, 4, 3, 3), rois=torch.zeros(2, 5), offset=None, output_size=(2, 3))
    assert ops.deform_roi_pool(**arguments).shape == (2, 4, 2, 3)
    with pytest.raises(RuntimeError, match=message):
        ops.deform_roi_pool(**{**arguments, **change})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(output_dim=2),
            r'input must be \[B, output_dim\*group_size\*\*2, H, W\] = \[B, 8, H, W\], got \[1, 12, 3, 3\]',
        ),
        (dict(offset=torch.zeros(2, 2, 7, 7)), r'offset must be .* = \[2, 2\*K, 3, 3\], got \[2, 2, 7, 7\]'),
        (dict(offset=torch.zeros(2, 4, 3, 3)), r'offset must be .* with K dividing 3 channels, got \[2, 4, 3, 3\]'),
        (dict(sample_per_part=0), 'sample_per_part must be at least 1, got 0'),
    ],
    ids=str,
)
def test_deform_ps_roi_pool(change, message):
    arguments = dict(input=torch.zeros(1, 12, 3, 3), rois=torch.zeros(2, 5), offset=torch.zeros(2, 6, 3, 3))
    arguments |= dict(spatial_scale=0.25, output_dim=3, group_size=2, pooled_size=3)
    assert ops.deform_ps_roi_pool(**arguments).shape == (2, 3, 3, 3)
    with pytest.raises(RuntimeError, match=message):
        ops.deform_ps_roi_pool(**{**arguments, **change})


@pytest.mark.parametrize('size', [(0, 3), (3, 0)])
def test_deform_conv2d_of_an_empty_map_is_its_bias(size):
    output = ops.deform_conv2d(
        torch.zeros(1, 4, *size),
        torch.zeros(1, 2, *(n + 2 for n in size)),
        torch.ones(2, 4, 1, 1),
        torch.ones(2),
        padding=1,
    )
    assert (output == 1).all()


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((4, [1], [2], [3]), 'costs must hold L.T.Q numbers of each set, 6 for .* got 4'),
        ((6, [1], [2], [-3]), r'counts must not be negative, got \[-3\]'),
        ((6, [-1], [-2], [3]), r'layers must not be negative, got \[-1\]'),
        ((0, [2**40], [2**40], [2**40]), 'got 0'),
        ((6, [1], [2, 3], [3]), 'must have a number for each set'),
        ((6, [1, 1], [1, 1], [3, 2, 1]), 'must have a number for each set'),
        ((6, [], [], [3]), 'must have a number for each set'),
    ],
    ids=str,
)
def test_assignment(arguments, message, device):
    size, *sizes = arguments
    with pytest.raises(ValueError, match=message):
        ops.linear_sum_assignment(torch.rand(size, device=device), *sizes)
    assert ops.linear_sum_assignment(torch.rand(0, device=device), [], [], []).shape == (4, 0)
