"""Deformable RoI pooling, plain and position-sensitive: by hand, against the kernels that define it, at the edges."""

import math
import time

import pytest
import roi_pool_loops
import torch

from mmdet_ddetr.ops import _load, deform_ps_roi_pool, deform_roi_pool, reference


def ramp(H, W):
    """[1, 1, H, W], 10 * row + column."""
    return (10 * torch.arange(H)[:, None] + torch.arange(W)).double()[None, None]


def roi(*corners, image=0):
    return torch.tensor([[image, *corners]], dtype=torch.double)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_plain_bins_by_hand():
    """RoI of 4 x 4 cells from (1, 2): bins of 2 x 2 cells with one sample in their middle."""
    output = deform_roi_pool(ramp(8, 8), roi(1, 2, 5, 6), None, 2, sampling_ratio=1)
    assert output.tolist() == [[[[26.5, 28.5], [46.5, 48.5]]]]  # y 2.5 and 4.5, x 1.5 and 3.5
    twice = deform_roi_pool(ramp(8, 8), roi(2, 4, 10, 12), None, 2, 0.5, 1)
    assert twice.tolist() == output.tolist()
    assert deform_roi_pool(ramp(8, 8), roi(1, 2, 5, 6), None, (1, 4), sampling_ratio=2).tolist() == [
        [[[36, 37, 38, 39]]]  # columns 1, 2, 3, 4 of the RoI, which begins at -.5 + 1; all of its rows
    ]


def test_an_offset_moves_its_bin_by_a_share_of_the_roi():
    """gamma 0.25 of 4 cells: an offset of 1 is a cell. x comes first."""
    offset = torch.zeros(1, 2, 2, 2, dtype=torch.double)
    offset[0, 0, 0, 1] = 1  # x of the first row's second bin
    offset[0, 1, 1, 0] = -0.5  # y of the second row's first bin
    output = deform_roi_pool(ramp(8, 8), roi(1, 2, 5, 6), offset, 2, sampling_ratio=1, gamma=0.25)
    assert output.tolist() == [[[[26.5, 29.5], [41.5, 48.5]]]]


def test_the_border_by_hand():
    """A RoI of a 2 x 2 map, two samples an axis: those half a cell outside count as on the border."""
    input = torch.tensor([[[[1.0, 2], [3, 4]]]], dtype=torch.double, requires_grad=True)
    output = deform_roi_pool(input, roi(0, 0, 1, 1), None, 2, sampling_ratio=2)
    # x -.375, -.125 -> both 0; .125, .375 -> .25 on average; 1 + x + 2 y
    assert output.tolist() == [[[[1, 1.25], [1.5, 1.75]]]]
    output.sum().backward()
    assert input.grad.tolist() == [[[[3.0625, 0.4375], [0.4375, 0.0625]]]]  # 1.75 * 1.75, 1.75 * .25, .25 * .25


@pytest.mark.parametrize(
    ('x', 'expected', 'derivative'),
    [
        (1.25, 1.25, 1),
        (1, 1, 1),  # on a knot, towards larger x
        (0, 0, 1),
        (-0.25, 0, 0),
        (-1, 0, 0),  # a cell outside it still counts as on the border, which is 5 + 0
        (2.5, 2, 0),
        (2, 2, 0),
        (3, 2, 0),
        (-1.001, -5, 0),  # nothing at all
        (3.001, -5, 0),
        (1e30, -5, 0),
        (-1e30, -5, 0),
    ],
)
def test_one_sample_by_hand(x, expected, derivative):
    """A RoI of one bin and sample, 1 x 1 cells around the cell (1, 0), moved to x; the map is 5 + column."""
    input = (5 + torch.arange(3).double()).expand(1, 1, 3, 3)
    offset = torch.tensor([x, 0], dtype=torch.double).view(1, 2, 1, 1).requires_grad_()
    output = deform_roi_pool(input, roi(0, 1, 1, 2), offset, 1, gamma=1.0)
    assert output.item() == pytest.approx(5 + expected)
    assert torch.autograd.grad(output, offset)[0].flatten().tolist() == [derivative, 0]


def test_sampling_ratio_0_takes_a_sample_a_cell():
    """3 x 2 cells in one bin: the mean of 3 x 2 samples, at 0, 1, 2 and 0, 1."""
    input = torch.zeros(1, 1, 4, 4, dtype=torch.double)
    input[0, 0, 1, 2] = 6
    assert deform_roi_pool(input, roi(0, 0, 3, 2), None, 1).item() == 1
    assert (
        deform_roi_pool(input, roi(0, 0, 3, 2), None, 1, sampling_ratio=1).item() == 0.0
    )  # one at (.5, 1): half of it
    input[0, 0, 0, 1] = 6
    assert deform_roi_pool(input, roi(0, 0, 3, 2), None, 1, sampling_ratio=1).item() == 3


def test_each_bin_has_its_own_score_map():
    """R-FCN: map o g g + row g + column is that of channel o in (row, column)."""
    input = torch.arange(8.0)[None, :, None, None].expand(1, 8, 6, 6)
    pooled = deform_ps_roi_pool(input, roi(0, 0, 5, 5).float(), None, 1.0, 2, 2, 2)
    assert pooled.tolist() == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]
    four = deform_ps_roi_pool(input, roi(0, 0, 5, 5).float(), None, 1.0, 2, 2, 4)
    assert four[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_score_maps_by_hand():
    """Pixels 0 to 3, the last one included: 4 cells from -.5; samples at the near corners of their shares."""
    input = torch.arange(4.0).expand(1, 1, 4, 4)  # columns
    pooled = deform_ps_roi_pool(input, torch.tensor([[0.0, 0.4, 0, 2.5, 3]]), None, 1.0, 1, 1, 2, sample_per_part=2)
    # rounded to 0 and 3. x -.5, .5 -> 0, .5; 1.5, 2.5
    assert pooled[0, 0].tolist() == [[0.25, 2], [0.25, 2]]


def test_samples_outside_are_left_out_of_the_mean():
    """Of x -1.5, -.5, .5 and 1.5, the first is more than half a cell outside; where all are, the bin is 0."""
    input = 1 + torch.arange(4.0).expand(1, 1, 4, 4)
    pooled = deform_ps_roi_pool(input, torch.tensor([[0.0, -1, 0, 2, 3]]), None, 1.0, 1, 1, 1)
    assert pooled.item() == pytest.approx((1 + 1.5 + 2.5) / 3)
    assert deform_ps_roi_pool(input, torch.tensor([[0.0, 50, 0, 60, 3]]), None, 1.0, 1, 1, 1).item() == 0


def test_classes_have_offsets_of_their_own():
    """Two classes of one channel: the second moves by half of the RoI's 4 cells, down."""
    input = ramp(8, 8).expand(1, 2, 8, 8)
    offset = torch.zeros(1, 4, 1, 1, dtype=torch.double)
    offset[0, 3] = 1  # class 1, y
    pooled = deform_ps_roi_pool(input, roi(0, 0, 3, 3), offset, 1.0, 2, 1, 1, trans_std=0.5, sample_per_part=1)
    assert pooled.flatten().tolist() == [0, 15]  # at (-.5, -.5), on the border; at y 1.5


# --- against the kernels that define it ------------------------------------------------------------------------------

OUTPUT_SIZES = [(2, 2), (1, 3)]


def make(C, offset_shape, R=3, size=(5, 6), spread=1.0, dtype=torch.double):
    rng = torch.Generator().manual_seed(C)
    corners = torch.rand(R, 2, generator=rng, dtype=torch.double) * 20 - 4
    rois = torch.cat((corners, corners + torch.rand(R, 2, generator=rng, dtype=torch.double) * 25), 1)
    rois = torch.cat((torch.arange(R).double()[:, None] % 2, rois), 1)
    input = torch.randn(2, C, *size, generator=rng, dtype=torch.double)
    offset = None
    if offset_shape is not None:
        offset = spread * torch.randn(R, *offset_shape, generator=rng, dtype=torch.double)
    return [None if t is None else t.to(dtype) for t in (input, rois, offset)]


def gradients(function, input, rois, offset, *options, weights=None):
    """Output, gradients of input and offset under weights."""
    leaves = [t.detach().requires_grad_() for t in (input, offset) if t is not None]
    output = function(leaves[0], rois, None if offset is None else leaves[1], *options)
    return output.detach(), *torch.autograd.grad(output, leaves, output.detach() * 0 + weights)


def weights_of(*shape):
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.double).view(shape)


def plain(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma):
    return reference.deform_roi_pool(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma)


@pytest.mark.parametrize('sampling_ratio', [0, 1, 2])
@pytest.mark.parametrize('output_size', OUTPUT_SIZES)
@pytest.mark.parametrize('moved', [False, True])
def test_against_the_kernel_of_mmcv(moved, output_size, sampling_ratio):
    tensors = make(3, (2, *output_size) if moved else None)
    options = output_size, 0.25, sampling_ratio, 0.4
    weights = weights_of(3, 3, *output_size)
    offset = torch.zeros(0, dtype=torch.double) if tensors[2] is None else tensors[2]
    expected = roi_pool_loops.mmcv(*tensors[:2], offset, *options, weights)[: 2 + moved]
    torch.testing.assert_close(gradients(deform_roi_pool, *tensors, *options, weights=weights), expected)
    torch.testing.assert_close(gradients(plain, *tensors, *options, weights=weights), expected)


# (output_dim, group_size, pooled_size, part_size, classes)
SCORE_MAPS = {
    'one class': (3, 2, 2, 2, 1),
    'classes': (4, 2, 2, 2, 4),
    'two channels a class, parts of several bins': (4, 2, 4, 2, 2),
    'a grid of its own': (2, 3, 2, 3, 1),
    'no offsets': (2, 2, 3, 3, 0),
}


@pytest.mark.parametrize('name', SCORE_MAPS)
def test_against_the_official_kernel(name):
    output_dim, group_size, pooled_size, part_size, classes = SCORE_MAPS[name]
    tensors = make(output_dim * group_size**2, (2 * classes, part_size, part_size) if classes else None)
    options = 0.25, output_dim, group_size, pooled_size, part_size, 2, 0.4
    weights = weights_of(3, output_dim, pooled_size, pooled_size)
    offset = torch.zeros(0, dtype=torch.double) if tensors[2] is None else tensors[2]
    expected = roi_pool_loops.official(*tensors[:2], offset, *options, weights)[: 2 + bool(classes)]
    torch.testing.assert_close(gradients(deform_ps_roi_pool, *tensors, *options, weights=weights), expected)


def test_gradcheck():
    """Also where samples lie outside the map. No sample lies on a cell's centre, where there is no derivative."""
    input, rois, offset = make(2, (2, 2, 2), size=(3, 4), spread=2.0)
    leaves = input.requires_grad_(), offset.requires_grad_()
    assert torch.autograd.gradcheck(lambda i, o: deform_roi_pool(i, rois, o, 2, 0.25, 2, 0.4), leaves)
    assert torch.autograd.gradcheck(lambda i, o: deform_roi_pool(i, rois, o, 2, 0.25, 0, 0.4), leaves)
    input, rois, offset = make(8, (4, 2, 2), size=(3, 4))
    leaves = input.requires_grad_(), offset.requires_grad_()
    assert torch.autograd.gradcheck(lambda i, o: deform_ps_roi_pool(i, rois, o, 0.25, 2, 2, 2, None, 3), leaves)


# --- dtypes, sizes, edges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('channels', [1, 5, 16, 67, 150])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_channels_and_dtypes(channels, dtype):
    """Positions are exact, sums are rounded once; any number of channels, whole vectors or not."""
    input, rois, offset = make(channels, (2, 3, 2), R=5, dtype=dtype)
    rois, offset = rois.float(), offset.float()
    exact = input.double(), rois.double(), offset.double()
    options, weights = ((3, 2), 0.25, 2, 0.4), weights_of(5, channels, 3, 2).to(dtype)
    results = gradients(deform_roi_pool, input, rois, offset, *options, weights=weights)
    assert [r.dtype for r in results] == [dtype, dtype, torch.float32]
    eps = torch.finfo(dtype).eps
    for got, expected in zip(results, gradients(deform_roi_pool, *exact, *options, weights=weights.double())):
        assert (got.double() - expected).abs().max() <= 16 * eps * expected.abs().max()


def test_narrow_rois_and_offsets():
    input, rois, offset = make(4, (2, 2, 2), dtype=torch.bfloat16)
    exact = deform_roi_pool(input.double(), rois.double(), offset.double(), 2, 0.25)
    torch.testing.assert_close(deform_roi_pool(input, rois, offset, 2, 0.25).double(), exact, rtol=0.02, atol=0.02)
    doubles = deform_roi_pool(input.float(), rois.double(), offset.double(), 2, 0.25)  # which fp32 input cannot have
    assert doubles.dtype == torch.float32


@pytest.mark.parametrize('B', [0, 2])
def test_without_rois(B):
    input = torch.randn(B, 8, 3, 4, requires_grad=True)
    output = deform_roi_pool(input, torch.zeros(0, 5), torch.zeros(0, 2, 2, 3), (2, 3))
    assert output.shape == (0, 8, 2, 3)
    output.sum().backward()
    assert input.grad.shape == input.shape and not input.grad.any()
    assert deform_ps_roi_pool(input, torch.zeros(0, 5), None, 1.0, 2, 2, 7).shape == (0, 2, 7, 7)


@pytest.mark.parametrize('size', [(0, 3), (3, 0), (1, 1)])
def test_small_maps(size):
    input = torch.ones(1, 4, *size)
    offset = torch.zeros(1, 2, 2, 2, requires_grad=True)
    value = float(0 not in size)
    output = deform_roi_pool(input, roi(0, 0, 1, 1).float(), offset, 2)
    assert (output == value).all()
    assert not torch.autograd.grad(output.sum(), offset)[0].any()
    assert (deform_ps_roi_pool(input, roi(0, 0, 0, 0).float(), None, 1.0, 1, 2, 2) == value).all()


def test_a_roi_without_area():
    """No samples, or with a ratio all of them at a point; with its corners swapped they run backwards."""
    input = ramp(5, 5)
    assert deform_roi_pool(input, roi(2.5, 2.5, 2.5, 2.5), None, 2).tolist() == [[[[0, 0], [0, 0]]]]
    assert deform_roi_pool(input, roi(2.5, 2.5, 2.5, 2.5), None, 1, sampling_ratio=3).item() == pytest.approx(22)
    assert deform_roi_pool(input, roi(3, 3, 1, 1), None, 2).tolist() == [[[[0, 0], [0, 0]]]]
    backwards = deform_roi_pool(input, roi(4, 4, 1, 1), None, 2, sampling_ratio=3)
    forwards = deform_roi_pool(input, roi(1, 1, 4, 4), None, 2, sampling_ratio=3)
    torch.testing.assert_close(backwards.flip(2, 3), forwards)


@pytest.mark.parametrize('function', ['plain', 'position-sensitive'])
@pytest.mark.parametrize('which', ['offset', 'roi'])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gives_nan(function, which, value):
    input, rois, offset = make(4, (2, 2, 2), dtype=torch.float)
    nan = torch.zeros(3, dtype=torch.bool)
    if which == 'offset':
        offset[1, 1, 0, 1] = value
    else:
        rois[1, 2] = value

    def call(input, rois, offset):
        if function == 'plain':
            return deform_roi_pool(input, rois, offset, 2, 0.25)
        return deform_ps_roi_pool(input, rois, offset, 0.25, 1, 2, 2)

    output, grad_input, grad_offset = gradients(call, input, rois, offset, weights=1)
    nan = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    nan[1, :, 0, 1] = True
    if which == 'roi':
        nan[1] = True
    assert torch.equal(output.isnan(), nan.expand_as(output))
    assert torch.equal(grad_offset.isnan(), nan.expand_as(grad_offset))
    assert grad_input.isfinite().all()  # it loses the bin


@pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='plain PyTorch needs the memory')
def test_a_roi_much_larger_than_the_map_takes_no_time():
    """The samples that lie outside are not visited, however many there are."""
    input = torch.ones(1, 3, 20, 30)
    start = time.perf_counter()
    for far in (1e4, 1e7, 1e30):
        pooled = deform_roi_pool(input, torch.tensor([[0, -far, -far, far, far]]), None, 7)
        assert pooled.isfinite().all() and pooled[0, 0, 3, 3] <= 1
    assert time.perf_counter() - start < 1
    exact = deform_roi_pool(input.double(), roi(-1000, -2000, 3000, 1000), None, 1)
    assert exact.unique().item() == pytest.approx(22 * 32 / (3000 * 4000))  # samples at -1, 0, ... 20 and -1, 0, ... 30


@pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='elsewhere its bins are NaN')
@pytest.mark.parametrize('image', [-1, 2, 1e30, math.nan])
def test_a_roi_of_no_image_is_named(image):
    input, rois, _ = make(4, None)
    rois[2, 0] = image
    with pytest.raises(RuntimeError, match=r'rois\[:, 0\] must be the numbers of images, 0 to 1, got .* for RoI 2'):
        deform_roi_pool(input, rois, None, 2)
    expected = torch.zeros(3, dtype=torch.bool)
    expected[2] = True
    pooled = reference.deform_roi_pool(input, rois, None, (2, 2), 1.0, 2, 0.1)
    assert torch.equal(pooled.isnan().all((1, 2, 3)), expected)
