"""Deformable convolution against scalar loops, conv2d and finite differences; and through mmcv's modules."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from mmdet_ddetr.ops import deform_conv2d, reference

# (groups, offset groups, kernel, stride, padding, dilation), each with something that the others have not
GEOMETRIES = {
    'plain 3 x 3': (1, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    'groups 2, offset groups 3': (2, 3, (3, 3), (1, 1), (1, 1), (1, 1)),
    'uneven everything': (3, 2, (2, 3), (2, 1), (0, 2), (1, 2)),
    '1 x 1': (1, 6, (1, 1), (1, 2), (0, 0), (1, 1)),
}


def make_inputs(groups, G, kernel, stride, padding, dilation, dtype=torch.double, B=2, C=6, C_out=6, size=(5, 7)):
    rng = torch.Generator().manual_seed(0)
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)]
    T = math.prod(kernel)
    return dict(
        input=torch.randn(B, C, *size, generator=rng, dtype=torch.double).to(dtype),
        offset=2 * torch.randn(B, 2 * G * T, *out, generator=rng, dtype=torch.double).to(dtype),
        weight=torch.randn(C_out, C // groups, *kernel, generator=rng, dtype=torch.double).to(dtype),
        bias=torch.randn(C_out, generator=rng, dtype=torch.double).to(dtype),
        mask=torch.rand(B, G * T, *out, generator=rng, dtype=torch.double).to(dtype),
    )


def by_loops(input, offset, weight, bias, mask, stride, padding, dilation):
    """The definition, a number at a time."""
    (B, C, H, W), (C_out, C_group, kh, kw) = input.shape, weight.shape
    T = kh * kw
    G, groups = offset.shape[1] // (2 * T), C // C_group
    _, _, Ho, Wo = offset.shape

    def sample(image, y, x):
        total = 0.0
        for row, column in itertools.product(range(H), range(W)):
            total += image[row][column] * max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
        return total

    images, offset = input.tolist(), offset.tolist()
    output = bias.view(1, C_out, 1, 1).repeat(B, 1, Ho, Wo)
    for b, o, i, j in itertools.product(range(B), range(C_out), range(Ho), range(Wo)):
        for c, u, v in itertools.product(range(C_group), range(kh), range(kw)):
            channel = o // (C_out // groups) * C_group + c
            tap = channel // (C // G) * T + u * kw + v
            y = i * stride[0] - padding[0] + u * dilation[0] + offset[b][2 * tap][i][j]
            x = j * stride[1] - padding[1] + v * dilation[1] + offset[b][2 * tap + 1][i][j]
            factor = 1.0 if mask is None else mask[b, tap, i, j]
            output[b, o, i, j] += weight[o, c, u, v] * factor * sample(images[b][channel], y, x)
    return output


@pytest.mark.parametrize('modulated', [False, True], ids=['DCN', 'DCNv2'])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_against_loops(name, modulated):
    geometry = GEOMETRIES[name]
    inputs = make_inputs(*geometry, B=1 if name == 'plain 3 x 3' else 2, size=(4, 5))
    if not modulated:
        inputs['mask'] = None
    conv = dict(zip(('stride', 'padding', 'dilation'), geometry[3:]))
    expected = by_loops(**inputs, **conv)
    torch.testing.assert_close(deform_conv2d(**inputs, **conv), expected)
    torch.testing.assert_close(reference.deform_conv2d(**inputs, **conv), expected)


@pytest.mark.parametrize('name', GEOMETRIES)
def test_without_offset_it_is_conv2d(name):
    """fp32: coordinates travel as shares of the map, which moves a sample by 1e-6 cells."""
    groups, *_ = geometry = GEOMETRIES[name]
    inputs = make_inputs(*geometry, dtype=torch.float)
    conv = dict(zip(('stride', 'padding', 'dilation'), geometry[3:]))
    input, weight, bias, mask = (inputs[key] for key in ('input', 'weight', 'bias', 'mask'))
    expected = F.conv2d(input, weight, bias, groups=groups, **conv)
    zero = torch.zeros_like(inputs['offset'])
    torch.testing.assert_close(deform_conv2d(input, zero, weight, bias, **conv), expected, rtol=1e-5, atol=3e-5)
    half = torch.full_like(mask, 0.5)
    halved = F.conv2d(input, weight / 2, bias, groups=groups, **conv)
    torch.testing.assert_close(
        deform_conv2d(input, zero, weight, bias, mask=half, **conv), halved, rtol=1e-5, atol=3e-5
    )


@pytest.mark.parametrize(
    ('y', 'x', 'expected'),
    [
        (1, 1, 11),
        (2, 1, 21),  # y comes first
        (1, 2, 12),
        (1.5, 1.25, 16.25),
        (-0.5, 1, 0.5),  # half a row above the first: half of it, as beyond it are zeros
        (-0.75, 1.5, 0.375),
        (-1, 1, 0),
        (1, 2.5, 6),  # half a column beyond the last
        (100, -100, 0),
    ],
)
def test_one_sample_by_hand(y, x, expected):
    """A map of 10 * row + column; a 1 x 1 kernel in the first cell moves by (y, x)."""
    ramp = torch.tensor([[[[0.0, 1, 2], [10, 11, 12], [20, 21, 22]]]], dtype=torch.double)
    offset = torch.tensor([y, x], dtype=torch.double).view(1, 2, 1, 1)
    output = deform_conv2d(ramp, offset, ramp.new_full((1, 1, 1, 1), 2.0), ramp.new_tensor([3.0]), stride=3)
    assert output.item() == pytest.approx(2 * expected + 3)


@pytest.mark.parametrize('name', ['groups 2, offset groups 3', 'uneven everything'])
def test_gradients(name):
    groups, G, *_ = geometry = GEOMETRIES[name]
    inputs = make_inputs(*geometry, B=1, size=(3, 4))
    conv = dict(zip(('stride', 'padding', 'dilation'), geometry[3:]))
    # a bilinear sample has no derivative where it crosses a cell's centre: stay away from there
    whole = inputs['offset'].floor()
    inputs['offset'] = whole + 0.1 + 0.8 * (inputs['offset'] - whole)
    tensors = [inputs[key].requires_grad_() for key in ('input', 'offset', 'weight', 'bias', 'mask')]

    def convolve(input, offset, weight, bias, mask):
        return deform_conv2d(input, offset, weight, bias, mask=mask, **conv)

    assert torch.autograd.gradcheck(convolve, tensors)


@pytest.mark.parametrize('name', GEOMETRIES)
def test_gradients_against_the_reference(name):
    *_, stride, padding, dilation = geometry = GEOMETRIES[name]
    tensors = [tensor.requires_grad_() for tensor in make_inputs(*geometry).values()]

    def gradients(function):
        output = function(*tensors[:4], stride, padding, dilation, mask=tensors[4])
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        return torch.autograd.grad((output * weights).sum(), tensors)

    torch.testing.assert_close(gradients(deform_conv2d), gradients(reference.deform_conv2d))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_types(dtype):
    """Positions are exact, sums are rounded: the error is that of conv2d in the same type."""
    geometry = GEOMETRIES['plain 3 x 3']
    inputs = make_inputs(*geometry, dtype=dtype, size=(9, 11))
    exact = {key: tensor.double() for key, tensor in inputs.items()}
    output = deform_conv2d(**inputs, padding=1)
    assert output.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), deform_conv2d(**exact, padding=1), rtol=4 * eps, atol=16 * eps)


def test_sizes_of_zero():
    inputs = make_inputs(*GEOMETRIES['plain 3 x 3'], B=0)
    assert deform_conv2d(**inputs, padding=1).shape == (0, 6, 5, 7)


@pytest.mark.parametrize('size', [(1, 1), (4, 8), (5, 7), (49, 3)])
@pytest.mark.parametrize('function', [deform_conv2d, reference.deform_conv2d])
def test_a_cell_away_from_the_map_there_is_nothing(function, size):
    """At a coordinate of exactly -1, where a padded convolution starts: no value and no derivative."""
    input, offset = torch.rand(1, 2, *size, requires_grad=True), torch.zeros(1, 2, 1, 1, requires_grad=True)
    for padding, stride in (((1, 0), (99, 1)), ((0, 1), (1, 99)), ((1, 1), (99, 99))):
        shape = [(n + 2 * p - 1) // s + 1 for n, p, s in zip(size, padding, stride)]
        taps = offset.expand(1, 2, *shape)
        output = function(input, taps, torch.ones(3, 2, 1, 1), stride=stride, padding=padding)
        assert output.count_nonzero() == 0
        grads = torch.autograd.grad(output.sum(), (input, offset))
        assert all(grad.count_nonzero() == 0 for grad in grads)


@pytest.mark.parametrize('function', [deform_conv2d, reference.deform_conv2d])
def test_an_offset_that_is_not_finite_gives_nan(function):
    inputs = make_inputs(*GEOMETRIES['plain 3 x 3'], dtype=torch.float)
    inputs['offset'][1, 3, 2, 4] = math.nan  # x of the second tap
    offset = inputs['offset'].requires_grad_()
    output = function(**inputs, padding=1)
    nan = torch.zeros_like(output, dtype=torch.bool)
    nan[1, :, 2, 4] = True
    assert torch.equal(output.isnan(), nan)
    nan = torch.zeros_like(offset, dtype=torch.bool)
    nan[1, 2:4, 2, 4] = True
    assert torch.equal(torch.autograd.grad(output.sum(), offset)[0].isnan(), nan)


def test_bad_input_is_named():
    inputs = make_inputs(*GEOMETRIES['plain 3 x 3'])
    for change, message in {
        'weight': r'weight must be \[C_out, C/groups, kh, kw\] for input \[2, 6, 5, 7\], got \[6, 4, 3, 3\]',
        'offset': r'offset must be .* \[2, G\*18, 5, 7\] with G dividing C = 6, got \[2, 18, 5, 6\]',
        'mask': r'mask must be \[B, G\*T, Ho, Wo\] = \[2, 9, 5, 7\], got \[2, 8, 5, 7\]',
    }.items():
        wrong = dict(
            weight=inputs['weight'].new_zeros(6, 4, 3, 3), offset=inputs['offset'][..., 1:], mask=inputs['mask'][:, 1:]
        )
        with pytest.raises(RuntimeError, match=message):
            deform_conv2d(**{**inputs, change: wrong[change]}, padding=1)


# --- mmcv's modules: with mmcv-lite they compute by this function, with a compiled mmcv they are its peers --------


def gradients_of(function, tensors):
    output = function(*tensors)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, *torch.autograd.grad((output * weights).sum(), tensors)


@pytest.mark.parametrize('name', ['groups 2, offset groups 3', 'uneven everything'])
def test_mmcv_functions(name):
    from mmcv.ops import deform_conv2d as mmcv_deform_conv2d
    from mmcv.ops import modulated_deform_conv2d

    groups, G, _, stride, padding, dilation = geometry = GEOMETRIES[name]
    inputs = make_inputs(*geometry, dtype=torch.float)
    input, offset, weight, bias, mask = (
        inputs[key].requires_grad_() for key in ('input', 'offset', 'weight', 'bias', 'mask')
    )
    conv = (stride, padding, dilation)
    theirs = gradients_of(lambda i, o, w: mmcv_deform_conv2d(i, o, w, *conv, groups, G), (input, offset, weight))
    ours = gradients_of(lambda i, o, w: deform_conv2d(i, o, w, None, *conv), (input, offset, weight))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)

    tensors = (input, offset, mask, weight, bias)
    theirs = gradients_of(lambda *t: modulated_deform_conv2d(*t, *conv, groups, G), tensors)
    ours = gradients_of(lambda i, o, m, w, b: deform_conv2d(i, o, w, b, *conv, mask=m), tensors)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_mmcv_packs(kind):
    """As a layer of a backbone: built by name, mmcv's state_dict, the offsets are learned."""
    from mmcv.cnn import build_conv_layer

    layer = build_conv_layer(dict(type=kind, deform_groups=2), 8, 4, 3, stride=2, padding=1, groups=2, bias=False)
    maps = 2 if kind == 'DCN' else 3
    assert {key: list(tensor.shape) for key, tensor in layer.state_dict().items()} == {
        'weight': [4, 4, 3, 3],
        'conv_offset.weight': [2 * maps * 9, 8, 3, 3],
        'conv_offset.bias': [2 * maps * 9],
    }
    x = torch.randn(2, 8, 7, 9)
    expected = F.conv2d(x, layer.weight * (1 if kind == 'DCN' else 0.5), stride=2, padding=1, groups=2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)  # offsets start at 0, masks at sigmoid(0)
    torch.nn.init.normal_(layer.conv_offset.bias)
    layer(x).square().sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_mmcv_names_other_groups():
    """mmcv names the groups that this function takes from the shapes; the two must agree."""
    from mmcv.ops import deform_conv2d as mmcv_deform_conv2d

    inputs = make_inputs(*GEOMETRIES['groups 2, offset groups 3'], dtype=torch.float)
    tensors = [inputs[key] for key in ('input', 'offset', 'weight')]
    with pytest.raises((ValueError, RuntimeError), match='groups'):
        mmcv_deform_conv2d(*tensors, 1, 1, 1, 1, 3)
    with pytest.raises((ValueError, RuntimeError), match='deform_groups must be 3|offset'):
        mmcv_deform_conv2d(*tensors, 1, 1, 1, 2, 1)
