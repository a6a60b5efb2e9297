"""Output and gradients of the attention ops: by hand, against the reference in fp64, at the edges of their domain."""

import math

import pytest
import torch
from attention_cases import KINDS, MAPS, Case, assert_near

from mmdet_ddetr import ops

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def sample(values, x, y, device='cpu'):
    """One sample with weight 1 at (x, y) in cells of a map [H][W] with one channel, and the gradients of x and y."""
    values = torch.tensor(values, device=device)
    H, W = values.shape
    location = torch.tensor([(x + 0.5) / W, (y + 0.5) / H], device=device).view(1, 1, 1, 1, 1, 2).requires_grad_()
    weight = torch.ones(1, 1, 1, 1, 1, device=device)
    output = ops.ms_deform_attn(values.view(1, H * W, 1, 1), [(H, W)], location, weight)
    output.sum().backward()
    dx, dy = location.grad.flatten().tolist()
    return output.item(), dx / W, dy / H


# --- by hand -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('x', 'y', 'expected'),
    [
        (0, 0, (1, 9, 3)),  # a cell's centre: its value; the derivatives to the right and downwards
        (1, 1, (40, -40, -40)),  # the last cell: beyond it is zero
        (0.5, 0, (5.5, 9, 16.5)),  # between two cells
        (0.5, 0.5, (13.75, 22.5, 16.5)),  # between four: (1 + 10 + 4 + 40) / 4
        (0.25, 0.75, (0.25 * (0.75 * 1 + 0.25 * 10) + 0.75 * (0.75 * 4 + 0.25 * 40), 29.25, 9.75)),
        (-0.5, 0, (0.5, 1, 1.5)),  # the edge: half of the cell
        (-0.5, -0.5, (0.25, 0.5, 0.5)),  # the corner: a quarter
        (1.5, 1.5, (10, -20, -20)),
        (-1, 0, (0, 0, 0)),  # a cell away from the map
        (2, 2, (0, 0, 0)),
        (100, -100, (0, 0, 0)),
    ],
)
def test_by_hand(x, y, expected, device):
    assert sample([[1.0, 10.0], [4.0, 40.0]], x, y, device) == pytest.approx(expected, abs=1e-4)


def test_by_hand_of_a_fused_call(device):
    """Softmax of (0, ln 3) is (1/4, 3/4); from the cell (1, 0), one offset stays and the other goes one cell down."""
    value = torch.tensor([[1.0, 10.0], [4.0, 40.0]], device=device).view(1, 4, 1, 1)
    reference = torch.tensor([0.75, 0.25], device=device).view(1, 1, 1, 2)
    offsets = torch.tensor([[0.0, 0.0], [0.0, 1.0]], device=device).view(1, 1, 1, 1, 2, 2)
    logits = torch.tensor([0.0, math.log(3)], device=device).view(1, 1, 1, 2)
    output = ops.ms_deform_attn_fused(value, [(2, 2)], reference, offsets, logits)
    assert output.item() == pytest.approx(0.25 * 10 + 0.75 * 40, abs=1e-4)
    # a box of the map's size around its centre: an offset of K = 2 reaches its right edge, where half of a cell is left
    box = torch.tensor([0.5, 0.5, 1.0, 1.0], device=device).view(1, 1, 1, 4)
    offsets = torch.tensor([[2.0, -1.0], [0.0, 0.0]], device=device).view(1, 1, 1, 1, 2, 2)
    output = ops.ms_deform_attn_fused(value, [(2, 2)], box, offsets, logits)
    assert output.item() == pytest.approx(0.25 * 10 / 2 + 0.75 * (1 + 10 + 4 + 40) / 4, abs=1e-4)


# --- against the reference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    'sizes',
    [
        dict(),
        dict(B=1, Q=1, M=1, D=1, K=1, shapes=[(1, 1)]),
        dict(D=32, M=8, K=4, Q=31, shapes=[(13, 7), (7, 4), (4, 2), (2, 1)]),  # the usual one, asymmetric maps
        dict(D=64, M=2, K=5, shapes=[(9, 7)]),  # 5 points: rows that end inside of a vector
        dict(D=33, M=2, K=17),
        dict(D=7, M=5, K=1, Q=11),
        dict(D=96, M=1, K=4, Q=3, shapes=[(5, 6), (2, 3)]),
    ],
    ids=lambda sizes: '-'.join(f'{name}{sizes[name]}' for name in sizes if name != 'shapes') or 'odd',
)
def test_against_reference(kind, dtype, sizes, device):
    case = Case(kind, dtype=dtype, device=device, **sizes)
    assert_near(case.forward_backward(), case.oracle())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_points_may_be_as_narrow_as_value(kind, dtype, device):
    case = Case(kind, dtype=dtype, points_dtype=dtype, device=device)
    got, expected = case.forward_backward(), case.oracle()
    assert [tensor.dtype for tensor in got[1:]] == [tensor.dtype for tensor in case.tensors]
    assert_near(got, expected)


@pytest.mark.parametrize('D', [*range(1, 34, 2), 30, 32, 64, 71, 1025, 2048, 3096])
def test_gradcheck(D, device):
    case = Case(B=1, Q=2, M=2, D=D, K=2, shapes=MAPS[:2], dtype=torch.float64, device=device)
    noise = 1e-9 if device == 'cuda' else 0.0  # of sums in any order
    assert torch.autograd.gradcheck(case.call, case.leaves(), fast_mode=D > 7, nondet_tol=noise)


@pytest.mark.parametrize('kind', KINDS[1:])
def test_gradcheck_of_a_fused_call(kind, device):
    case = Case(kind, B=1, Q=2, M=2, D=3, dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(case.call, case.leaves())


@pytest.mark.parametrize('kind', KINDS)
def test_a_gradient_of_zeros_fails(kind):
    """The tolerances above find a gradient that is missing; mmcv's own gradient test passes with one."""
    case = Case(kind)
    got, expected = case.forward_backward(), case.oracle()
    for i in range(len(got)):
        wrong = [torch.zeros_like(tensor) if i == j else tensor for j, tensor in enumerate(got)]
        with pytest.raises(AssertionError):
            assert_near(wrong, expected)


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_of_some_arguments_only(kind, device, reproducible):
    case = Case(kind, device=device)
    everything = case.forward_backward()[1:]
    for i in range(len(case.tensors)):
        tensors = [tensor.detach().requires_grad_(i == j) for j, tensor in enumerate(case.tensors)]
        (grad,) = torch.autograd.grad(case.call(*tensors), tensors[i], case.grad_output)
        torch.testing.assert_close(grad, everything[i], rtol=0, atol=0)


# --- at the edges of the domain ------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_points_on_knots_and_edges(kind, device):
    """Locations on cell centres, borders between cells and the map's edges: forward and right-hand derivatives.

    Sizes are powers of two, so that fp64 and fp32 place them exactly alike.
    """
    case = Case(kind, B=1, Q=9 * 9, M=1, K=1, D=4, shapes=[(4, 4)], dtype=torch.float64, device=device)
    steps = torch.linspace(-0.25, 1.25, 9 * 9 // 9, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing='xy'), -1).view(1, 81, 1, 1, 1, 2)
    if kind == 'locations':
        case.tensors[1] = grid.to(device)
    else:
        case.tensors[1][..., :2] = grid.view(1, 81, 1, 2)
        case.tensors[2].zero_()
    assert_near(case.forward_backward(), case.oracle())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('way', ['call', 'reference', 'reference_by_gather'])
def test_knots_of_odd_sizes(way, dtype, device):
    """Rounding decides on which side of a cell's centre a location is: its derivative is that of one of the sides."""
    H, W = 7, 25
    case = Case(B=1, Q=H * W, M=1, K=1, D=4, shapes=[(H, W)], dtype=dtype, device=device)
    y, x = ((torch.arange(size, dtype=torch.float64) + 0.5) / size for size in (H, W))
    centres = torch.cartesian_prod(y, x).flip(-1).view(1, H * W, 1, 1, 1, 2).to(device)
    sides = []
    for step in (-1e-9, 1e-9):
        case.tensors[1] = centres + step
        sides.append(case.oracle())
    case.tensors[1] = centres.to(dtype)
    output, *grads = case.forward_backward(getattr(case, way))
    torch.testing.assert_close(output.double(), sides[0][0], rtol=0, atol=1e-3)
    error = torch.minimum(*((grads[1] - side[2]).abs() for side in sides))
    assert error.max() < 1e-3 < (sides[0][2] - sides[1][2]).abs().median()


def test_what_lies_outside_is_not_read(device):
    """Cells beside a sample may hold anything: NaN in the neighbouring level, image or head does not leak."""
    case = Case(B=3, Q=50, shapes=[(2, 2), (3, 3), (2, 2)], device=device)
    value, locations, weights = case.tensors
    poisoned = value.clone()
    poisoned[:, :4] = poisoned[:, 13:] = float('nan')
    poisoned[0] = poisoned[2] = float('nan')
    poisoned[:, :, 0] = poisoned[:, :, 2] = float('nan')
    weights = weights.clone()
    weights[:, :, :, 0] = weights[:, :, :, 2] = 0
    locations[:, :, :, 0] = locations[:, :, :, 2] = 5  # the level beside: not touched
    output = ops.ms_deform_attn(poisoned, case.shapes, locations, weights).view(3, 50, 3, 8)
    expected = ops.ms_deform_attn(value, case.shapes, locations, weights).view(3, 50, 3, 8)
    torch.testing.assert_close(output[1, :, 1], expected[1, :, 1], rtol=0, atol=0)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('function', ['call', 'reference', 'reference_by_gather'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_non_finite_coordinate_gives_nan(kind, function, bad, device):
    """In the output of its head, in the gradients of its point, and in nothing else."""
    case = Case(kind, device=device)
    function = getattr(case, function)
    clean = case.forward_backward(function)
    point = (1, 2, 0, 1, 1)
    case.tensors[1 if kind == 'locations' else 2][(*point, 0)] = bad  # of x alone
    expected = [torch.zeros_like(tensor, dtype=torch.bool) for tensor in clean]
    output, _, *grads = expected
    output.view(2, 5, 3, 8)[1, 2, 0] = True
    grads[-2][point] = True  # x and y
    if kind == 'locations':
        grads[-1][point] = True
    else:
        grads[-1][1, 2, 0] = True  # through the softmax, all of the head
        grads[0][1, 2, 1] = True  # the reference of the query and level
    for i, (got, before, nan) in enumerate(zip(case.forward_backward(function), clean, expected)):
        assert torch.equal(got.isnan(), nan)
        if i == 1:  # the gradient of value has lost the point
            continue
        torch.testing.assert_close(got[~nan], before[~nan], rtol=0, atol=0)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize('function', ['call', 'reference', 'reference_by_gather'])
def test_a_cell_away_from_the_map_there_is_nothing(kind, function, dtype, device):
    """At a coordinate of exactly -1, value and derivatives are zero whatever the map's size, as in mmcv's kernel."""
    shapes = [(n, m) for n, m in zip(range(1, 60), reversed(range(1, 60)))]
    case = Case(kind, B=1, Q=2, M=1, K=1, D=4, shapes=shapes, dtype=dtype, device=device)
    places = torch.full((1, 2, len(shapes), 2), 0.3, dtype=dtype)
    for axis in (0, 1):  # of x in the first query, of y in the second
        places[0, axis, :, axis] = -0.5 / torch.tensor(shapes, dtype=dtype)[:, 1 - axis]
    if kind == 'locations':
        case.tensors[1] = places[:, :, None, :, None].to(device)
    else:
        case.tensors[1][..., :2] = places.to(device)
        case.tensors[2].zero_()
    assert all(tensor.count_nonzero() == 0 for tensor in case.forward_backward(getattr(case, function)))


@pytest.mark.parametrize('far', [1e9, -1e9, 1e30, 3e38])
def test_a_far_location_is_outside(far, device):
    case = Case(device=device)
    case.tensors[2][..., 0] = 0
    expected = case.call(*case.tensors)
    case.tensors[1][..., 0, :] = far / 1000
    torch.testing.assert_close(case.call(*case.tensors), expected)


@pytest.mark.parametrize('logit', [-1e4, 1e4, -80.0, 80.0])
def test_softmax_of_large_logits(logit, device):
    case = Case('points', device=device)
    case.tensors[3][..., 0] = logit
    assert_near(case.forward_backward(), case.oracle())


def test_softmax_with_masked_points(device):
    case = Case('points', device=device)
    case.tensors[3][..., 1::2] = -math.inf
    assert_near(case.forward_backward(), case.oracle())
    case.tensors[3][0, 0, 0] = -math.inf  # nothing is left: NaN, as torch.softmax gives
    assert case.call(*case.tensors)[0, 0, :8].isnan().all()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    'sizes',
    [
        dict(B=0),
        dict(Q=0),
        dict(M=0),
        dict(D=0),
        dict(K=0),
        dict(shapes=[]),
        dict(shapes=[(0, 5)]),
        dict(shapes=[(3, 2), (0, 0), (2, 3), (4, 0)]),
    ],
    ids=str,
)
def test_empty_sizes(kind, sizes, device):
    case = Case(kind, device=device, **sizes)
    got = case.forward_backward()
    assert got[0].shape == (case.B, case.Q, case.M * case.D)
    if case.S and 'shapes' in sizes:  # some maps are left
        assert_near(got, case.oracle())
    else:
        assert all(tensor.count_nonzero() == 0 for tensor in got)
    for function in (case.reference, case.reference_by_gather):  # plain PyTorch has every gradient, too
        leaves = case.leaves()
        grads = torch.autograd.grad(function(*leaves), leaves, case.grad_output)
        for grad, leaf, expected in zip(grads, leaves, got[1:]):
            assert grad.shape == leaf.shape
            torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_non_contiguous(kind, dtype, device, reproducible):
    case = Case(kind, dtype=dtype, device=device)
    expected = case.forward_backward()
    dense, case.grad_output = case.tensors, case.grad_output.transpose(0, 1).contiguous().transpose(0, 1)
    case.tensors = [torch.stack([t, t], -1)[..., 0].transpose(0, 1).contiguous().transpose(0, 1) for t in dense]
    case.leaves = lambda: [tensor.detach().requires_grad_() for tensor in case.tensors]
    assert not any(tensor.is_contiguous() for tensor in case.leaves())
    for got, exact in zip(case.forward_backward(), expected):
        torch.testing.assert_close(got, exact, rtol=0, atol=0)


def test_unaligned_memory(device, reproducible):
    """Tensors that begin in the middle of a vector."""
    case = Case(D=32, device=device)
    expected = case.forward_backward()

    def shifted(tensor):
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    case.tensors, case.grad_output = [shifted(t) for t in case.tensors], shifted(case.grad_output)
    case.leaves = lambda: [tensor.detach().requires_grad_() for tensor in case.tensors]
    noise = 1e-5 if device == 'cuda' else 0  # lanes with fewer channels add up in another order
    for got, exact in zip(case.forward_backward(), expected):
        torch.testing.assert_close(got, exact, rtol=noise, atol=noise)


# --- defects of other implementations ------------------------------------------------------------------------------


@pytest.mark.parametrize('W', [167, 257, 333])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_coordinates_are_not_rounded_to_value_dtype(W, dtype, device):
    """Each cell of a wide row holds another value: a location or a width in 16 bits would miss the cell."""
    value = (torch.arange(W, device=device) % 2).to(dtype).view(1, W, 1, 1)
    x = (torch.arange(W, device=device) + 0.5) / W
    locations = torch.stack([x, torch.full_like(x, 0.5)], -1).view(1, W, 1, 1, 1, 2)
    output = ops.ms_deform_attn(value, [(1, W)], locations, torch.ones(1, W, 1, 1, 1, device=device))
    torch.testing.assert_close(output.flatten(), value.flatten(), rtol=0, atol=1e-3)


def test_bf16_sums_do_not_stall(device):
    """One cell gets 4096 gradients of 1; a sum in bf16 ends at 256."""
    Q = 4096
    value = torch.zeros(1, 1, 1, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
    locations = torch.full((1, Q, 1, 1, 1, 2), 0.5, device=device)
    output = ops.ms_deform_attn(value, [(1, 1)], locations, torch.ones(1, Q, 1, 1, 1, device=device))
    output.backward(torch.ones_like(output))
    assert (value.grad == Q).all()


@pytest.mark.parametrize('kind', KINDS)
def test_queries_do_not_cross_images(kind, device, reproducible):
    """22223 = 71 * 313 queries divide by no tile; each image's result is that of the image alone."""
    case = Case(kind, B=3, Q=22223, M=1, D=4, K=1, shapes=[(3, 5)], device=device)
    together = case.forward_backward()
    grad_output = case.grad_output
    for b in range(3):
        alone = Case(kind, B=1, Q=22223, M=1, D=4, K=1, shapes=[(3, 5)], device=device)
        alone.tensors, alone.grad_output = [t[b : b + 1] for t in case.tensors], grad_output[b : b + 1]
        for one, all_ in zip(alone.forward_backward(), together):
            torch.testing.assert_close(one, all_[b : b + 1], rtol=1e-5, atol=1e-5)
    assert_near(together, case.oracle())


@pytest.mark.parametrize('B', [1, 3, 7])
def test_no_im2col_step(B, device):
    """The batch need not divide by anything."""
    case = Case(B=B, device=device)
    assert_near(case.forward_backward(), case.oracle())


# --- threads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('sizes', [dict(B=2, Q=301, M=2, D=40, K=4), dict(B=1, Q=1000, M=1, D=160, K=1)], ids=str)
def test_bitwise_equal_for_any_number_of_threads(kind, dtype, sizes):
    """40 and 160 channels are cut into several regions once there are enough threads."""
    case = Case(kind, dtype=dtype, shapes=[(9, 7), (5, 4), (2, 2)], **sizes)
    threads = torch.get_num_threads()
    try:
        expected = case.forward_backward()
        for n in (2, 3, 8, 33):
            torch.set_num_threads(n)
            for got, one in zip(case.forward_backward(), expected):
                torch.testing.assert_close(got, one, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)
