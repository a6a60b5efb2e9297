"""The CUDA kernels of csrc/cuda against the reference, on a GPU where there is one and in any case on the CPU.

For the CPU the kernels' unmodified source is compiled with a header (``cuda_on_host/cuda_runtime.h``) that runs every
CUDA thread as a fiber. It takes any order of threads between two synchronisations, drawn from a seed.
"""

import ctypes
import fcntl
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mmdet_ddetr.ops import has_compiled_kernel, reference

HERE = Path(__file__).parent
MAPS = [(6, 4), (3, 2), (1, 1)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def build(target: Path) -> None:
    torch_dir = Path(torch.__file__).parent
    command = ['g++', '-std=c++20', '-O1', '-shared', '-fPIC', '-fvisibility=hidden', '-Wl,-Bsymbolic']
    command += ['-DUSE_CUDA', '-DTORCH_TARGET_VERSION=0x020a000000000000']
    command += [f'-I{HERE / "cuda_on_host"}', f'-I{torch_dir / "include"}', str(HERE / 'cuda_on_host' / 'library.cpp')]
    command += [f'-L{torch_dir / "lib"}', '-ltorch', '-ltorch_cpu', '-lc10', f'-Wl,-rpath,{torch_dir / "lib"}']
    result = subprocess.run([*command, '-o', str(target)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope='session')
def host_library(tmp_path_factory):
    if shutil.which('g++') is None:
        pytest.skip('needs g++ to compile the CUDA kernels for the CPU')
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if folder.name.startswith('popen-') else folder  # one build for all workers of xdist
    target = folder / 'mmdet_ddetr_cuda_on_host.so'
    with open(folder / 'build.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            build(target)
    torch.ops.load_library(str(target))
    library = ctypes.CDLL(str(target))
    library.set_int32_limit.argtypes = [ctypes.c_int64]
    return library


@pytest.fixture
def host(host_library):
    """Switches of the kernels on the CPU: set_seed, set_int32_limit, launches."""
    yield host_library
    host_library.set_seed(0)
    host_library.set_int32_limit(2**30)


class Kernels:
    """The operators, with spatial_shapes as pairs, on the device that they run on."""

    def __init__(self, ops, device):
        self.ops, self.device = ops, device

    def __call__(self, name, *tensors_and_flags):
        def argument(x):
            if isinstance(x, torch.Tensor):
                return x.to(self.device)
            return [n for pair in x for n in pair] if isinstance(x, list) else x

        return getattr(self.ops, name)(*map(argument, tensors_and_flags))


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip('no GPU')
    if not torch._C._dispatch_has_kernel_for_dispatch_key('mmdet_ddetr::ms_deform_attn', 'CUDA'):
        pytest.skip('mmdet_ddetr is built without CUDA')
    return Kernels(torch.ops.mmdet_ddetr, 'cuda')


@pytest.fixture(params=['cpu', 'cuda'])
def kernels(request):
    if request.param == 'cuda':
        return request.getfixturevalue('gpu')
    request.getfixturevalue('host')
    return Kernels(torch.ops.mmdet_ddetr_cuda_on_host, 'cpu')


class Plain:
    """Random arguments of ms_deform_attn; a part of the locations lies outside the map."""

    name = 'ms_deform_attn'
    flags = ()

    def __init__(self, B=2, Q=7, M=3, D=8, shapes=MAPS, K=3, dtype=torch.float32, points_dtype=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        compute = torch.promote_types(dtype, torch.float32)
        points_dtype = points_dtype or compute
        S, L = sum(H * W for H, W in shapes), len(shapes)
        self.shapes, self.dtype = shapes, dtype
        self.value = torch.randn(B, S, M, D, generator=generator, dtype=torch.float64).to(dtype)
        self.grad_output = torch.randn(B, Q, M * D, generator=generator, dtype=torch.float64).to(dtype)
        self.points = self.make_points(B, Q, M, L, K, compute, points_dtype, generator)

    def make_points(self, B, Q, M, L, K, compute, points_dtype, generator):
        locations = torch.rand(B, Q, M, L, K, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
        weights = torch.rand(B, Q, M, L, K, generator=generator, dtype=torch.float64)
        return [locations.to(points_dtype), weights.to(points_dtype)]

    def forward(self, kernels):
        return kernels(self.name, self.value, self.shapes, *self.points).cpu()

    def backward(self, kernels, deterministic=False):
        arguments = self.grad_output, self.value, self.shapes, *self.points, *self.flags, deterministic
        return [grad.cpu() for grad in kernels(f'{self.name}_backward', *arguments)]

    def expected(self):
        """Output and gradients from the reference in fp64."""
        leaves = [x.double().requires_grad_() for x in (self.value, *self.points)]
        output = getattr(reference, self.name)(leaves[0], self.shapes, *leaves[1:])
        grads = torch.autograd.grad(output, leaves, self.grad_output.double(), allow_unused=True)
        return output.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads)]


class Fused(Plain):
    """Random arguments of ms_deform_attn_fused."""

    name = 'ms_deform_attn_fused'
    flags = (True,)  # needs_grad_reference

    def __init__(self, R=2, **kwargs):
        self.R = R
        super().__init__(**kwargs)

    def make_points(self, B, Q, M, L, K, compute, points_dtype, generator):
        references = torch.rand(B, Q, L, self.R, generator=generator, dtype=torch.float64)
        offsets = torch.randn(B, Q, M, L, K, 2, generator=generator, dtype=torch.float64)
        logits = 2 * torch.randn(B, Q, M, L * K, generator=generator, dtype=torch.float64)
        return [references.to(compute), offsets.to(points_dtype), logits.to(points_dtype)]


def assert_close(got, expected, dtype, cells=8):
    """``got`` comes from coordinates in ``cells`` cells and sums in the compute type, rounded once to ``dtype``."""
    assert got.dtype == dtype
    assert got.shape == expected.shape
    if got.numel() == 0:
        return
    scale = expected.abs().max().item()
    compute = torch.promote_types(dtype, torch.float32)
    rounding = 0.51 * torch.finfo(dtype).eps if dtype != compute else 0
    noise = (20 + cells) * torch.finfo(compute).eps if compute == torch.float32 else 1e-12
    torch.testing.assert_close(got.double(), expected, rtol=rounding, atol=noise * max(scale, 1e-3))


def check(case, kernels, deterministic=False):
    output, grads = case.expected()
    cells = max((side for shape in case.shapes for side in shape), default=0)
    assert_close(case.forward(kernels), output, case.dtype, cells)
    got = case.backward(kernels, deterministic)
    assert len(got) == len(grads)
    for tensor, grad, expected in zip((case.value, *case.points), got, grads):
        assert_close(grad, expected, tensor.dtype, cells)


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('D', [1, 2, 7, 8, 30, 33, 71, 260])
def test_channels(kernels, D, dtype, deterministic):
    check(Plain(B=1, Q=5, M=2, D=D, dtype=dtype), kernels, deterministic)


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('R', [2, 4])
def test_fused(kernels, R, dtype, deterministic):
    check(Fused(R=R, D=16, dtype=dtype), kernels, deterministic)
    check(Fused(R=R, D=5, B=1, dtype=dtype), kernels, deterministic)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_sixteen_bit_points(kernels, dtype):
    check(Plain(D=16, dtype=dtype, points_dtype=dtype), kernels)
    check(Fused(D=16, dtype=dtype, points_dtype=dtype), kernels)


@pytest.mark.parametrize('Q, M, D', [(71, 1, 32), (313, 3, 4), (1, 1, 1), (29, 8, 12)])
def test_an_image_of_a_batch_is_computed_as_if_alone(kernels, Q, M, D):
    """Q M is prime to the number of heads in a block: blocks lie across the border between images."""
    case = Plain(B=3, Q=Q, M=M, D=D)
    output, (grad_value, *grad_points) = case.forward(kernels), case.backward(kernels, deterministic=True)
    for b in range(3):
        alone = Plain(B=3, Q=Q, M=M, D=D)
        alone.value, alone.grad_output = case.value[b : b + 1], case.grad_output[b : b + 1]
        alone.points = [x[b : b + 1] for x in case.points]
        assert torch.equal(alone.forward(kernels)[0], output[b])
        grads = alone.backward(kernels, deterministic=True)
        for got, expected in zip(grads, (grad_value, *grad_points)):
            assert torch.equal(got[0], expected[b])
    check(case, kernels)


@pytest.mark.parametrize('shapes, K', [([(5, 7)], 1), ([(2, 3)] * 40, 1), (MAPS, 37)])
@pytest.mark.parametrize('kind', [Plain, Fused])
def test_levels_and_points(kernels, kind, shapes, K):
    """More levels than travel as a kernel argument, more samples than lanes."""
    check(kind(B=1, Q=5, M=2, D=8, shapes=shapes, K=K), kernels)
    check(kind(B=1, Q=5, M=2, D=8, shapes=shapes, K=K), kernels, deterministic=True)


def test_maps_without_a_cell(kernels):
    shapes = [(0, 3), (4, 4), (2, 0)]
    check(Plain(shapes=shapes), kernels)
    fused = Fused(shapes=shapes)
    assert_close(fused.forward(kernels), fused.expected()[0], fused.dtype)
    assert all(grad.isfinite().all() for grad in fused.backward(kernels))


def test_one_row_map_wider_than_bf16_can_count(kernels):
    check(Plain(B=1, Q=40, M=1, D=8, shapes=[(1, 333), (2, 257)], dtype=torch.bfloat16), kernels)


@pytest.mark.parametrize('empty', ['B', 'Q', 'M', 'D', 'K', 'L'])
@pytest.mark.parametrize('kind', [Plain, Fused])
@pytest.mark.parametrize('deterministic', [False, True])
def test_empty(kernels, kind, empty, deterministic):
    sizes = {'shapes': []} if empty == 'L' else {empty: 0}
    case = kind(**sizes)
    output = case.forward(kernels)
    assert output.shape == case.grad_output.shape
    assert not output.any()
    for grad, tensor in zip(case.backward(kernels, deterministic), (case.value, *case.points)):
        assert grad.shape == tensor.shape
        assert not grad.any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_layouts(kernels, dtype):
    """Transposed tensors, and contiguous ones that begin at an address fit for no vector load."""
    case = Plain(D=16, dtype=dtype)
    output, grads = case.forward(kernels), case.backward(kernels, deterministic=True)
    for layout in (
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    ):
        other = Plain(D=16, dtype=dtype)
        other.value, other.grad_output = layout(case.value), layout(case.grad_output)
        other.points = [layout(x) for x in case.points]
        assert_close(other.forward(kernels), output.double(), dtype)
        for got, expected in zip(other.backward(kernels, deterministic=True), grads):
            assert_close(got, expected.double(), expected.dtype)


def test_hand_computed(kernels):
    """A 2 x 2 map of 1, 2, 3, 4: centre, a cell's centre, the map's near corner, outside."""
    value = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    locations = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0, 0], [-0.5, 0.5]]).view(1, 4, 1, 1, 1, 2)
    output = kernels('ms_deform_attn', value, [(2, 2)], locations, torch.ones(1, 4, 1, 1, 1))
    assert output.flatten().tolist() == [2.5, 2, 0.25, 0]


def test_a_value_that_is_not_sampled_does_not_matter(kernels):
    case = Plain(B=1, Q=4, M=1, D=4, shapes=[(3, 3)], K=1)
    case.points[0].fill_(0.0)  # the near corner: three of the four cells lie outside
    case.value[:, 1:] = float('nan')
    assert case.forward(kernels).isfinite().all()
    assert all(grad[:, :1].isfinite().all() for grad in case.backward(kernels))


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_coordinate_that_is_not_finite_gives_nan(kernels, bad, deterministic):
    """In its head alone, and in the gradients of its point."""
    case = Plain(D=8)
    case.points[0][1, 2, 1, 0, 0, 0] = bad
    output = case.forward(kernels).view(2, 7, 3, 8)
    assert output[1, 2, 1].isnan().all()
    assert output.isnan().sum() == 8
    grad_value, grad_locations, grad_weights = case.backward(kernels, deterministic)
    assert grad_value.isfinite().all()
    assert grad_locations[1, 2, 1, 0, 0].isnan().all()
    assert grad_weights[1, 2, 1, 0, 0].isnan()
    assert grad_locations.isnan().sum() + grad_weights.isnan().sum() == 3


@pytest.mark.parametrize('W', [1, 4, 7, 49])
def test_a_cell_away_from_the_map_there_is_nothing(kernels, W):
    """At a coordinate of exactly -1, no value and no derivative; at 0 there are."""
    case = Plain(B=1, Q=1, M=1, D=4, shapes=[(3, W)], K=1)
    for x, nothing in ((-0.5 / torch.tensor(W), True), (0.5 / torch.tensor(W), False)):
        case.points[0][..., 0], case.points[0][..., 1] = x, 0.5
        results = [case.forward(kernels), *case.backward(kernels)]
        assert all((tensor.count_nonzero() == 0) == nothing for tensor in results[:1] + results[2:])


# (groups, offset groups, C, C_out, modulated): channels a lane, vector loads, several groups of each kind
CONVOLUTIONS = [(1, 1, 16, 3, True), (2, 3, 30, 4, True), (4, 1, 8, 4, False)]


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('groups, G, C, C_out, modulated', CONVOLUTIONS)
def test_deform_conv(kernels, groups, G, C, C_out, modulated, dtype, deterministic):
    rng = torch.Generator().manual_seed(0)
    geometry = (2, 1), (1, 1), (1, 2)
    exact = [
        torch.randn(2, C, 5, 6, generator=rng, dtype=torch.double),
        2 * torch.randn(2, G * 18, 3, 4, generator=rng, dtype=torch.double),
        torch.randn(C_out, C // groups, 3, 3, generator=rng, dtype=torch.double),
        torch.rand(2, G * 9, 3, 4, generator=rng, dtype=torch.double),
    ]
    given = [tensor.to(dtype) for tensor in exact]
    exact = [tensor.double().clone().requires_grad_() for tensor in given]
    mask, exact_mask = (given[3], exact[3]) if modulated else (None, None)
    expected = reference.deform_conv2d(*exact[:3], None, *geometry, mask=exact_mask)
    grad_output = torch.randn(expected.shape, generator=rng, dtype=torch.double).to(dtype)
    grads = torch.autograd.grad(expected, exact[: 3 + modulated], grad_output.double())

    arguments = *given[:3], *geometry, mask
    output = kernels('deform_conv2d', *arguments).cpu()
    got = kernels('deform_conv2d_backward', grad_output, *arguments, True, True, deterministic)
    assert modulated or got[3].shape == (0,)
    eps = max(torch.finfo(dtype).eps, 1e-14)
    for one, other in zip((output, *got), (expected, *grads)):  # samples, their gradients and sums are rounded
        assert one.dtype == dtype and one.shape == other.shape
        difference = (one.cpu().double() - other).abs().max() / other.abs().max()
        assert difference < 8 * eps


# (group_size, K, D, rounded): a lane a channel, vector loads, several turns of a group through the channels
POOLINGS = [(1, 1, 5, False), (1, 2, 16, False), (2, 3, 1, True), (3, 1, 264, True)]


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('group_size, K, D, rounded', POOLINGS)
def test_deform_roi_pool(kernels, group_size, K, D, rounded, dtype, deterministic):
    """RoIs inside the map, over its border, beside it, and without area; an adaptive number of samples, too."""
    rng = torch.Generator().manual_seed(0)
    rois = torch.tensor(
        [[0, 3, 2, 17, 12], [1, -9, -6, 30, 30], [1, 40, 3, 60, 9], [0, 5, 5, 5, 5], [1, 1, 2, 9, 19]]
    ).double()
    input = torch.randn(2, K * D * group_size**2, 5, 6, generator=rng, dtype=torch.double).to(dtype)
    offset = torch.randn(5, 2 * K, 2, 3, generator=rng, dtype=torch.double).to(dtype)
    options = (2, 3), 0.25, 2 if rounded else 0, 0.3, group_size, rounded
    exact = input.double().requires_grad_(), offset.double().requires_grad_()
    expected = reference.deform_roi_pool(exact[0], rois, exact[1], *options)
    grad_output = torch.randn(expected.shape, generator=rng, dtype=torch.double).to(dtype)
    grads = torch.autograd.grad(expected, exact, grad_output.double())

    arguments = input, rois.to(dtype), offset, *options
    output = kernels('deform_roi_pool', *arguments)
    got = kernels('deform_roi_pool_backward', grad_output, *arguments, True, True, deterministic)
    eps = max(torch.finfo(dtype).eps, 1e-14)
    for one, other in zip((output, *got), (expected, *grads)):
        assert one.dtype == dtype and one.shape == other.shape
        difference = (one.cpu().double() - other).abs().max() / other.abs().max()
        assert difference < 16 * eps
    for flags in ((True, False), (False, True)):
        some = kernels('deform_roi_pool_backward', grad_output, *arguments, *flags, deterministic)
        for one, other, asked in zip(some, got, flags):
            assert one.shape == (other.shape if asked else (0,))
    no_offset = kernels('deform_roi_pool', input, rois.to(dtype), None, *options).cpu().double()
    expected = reference.deform_roi_pool(input.double(), rois, None, *options)
    assert (no_offset - expected).abs().max() / expected.abs().max() < 16 * eps


@pytest.mark.parametrize('rounded', [False, True])
def test_deform_roi_pool_at_the_edges(kernels, rounded):
    """No RoIs, no cells; what is not finite, or of no image, is NaN in its bins and lost to the gradient of input."""
    options = (2, 2), 0.5, 2, 0.3, 1, rounded
    for R, size in ((0, (4, 5)), (2, (0, 5)), (2, (4, 0))):
        arguments = torch.ones(1, 4, *size), torch.zeros(R, 5), torch.ones(R, 2, 2, 2), *options
        assert not kernels('deform_roi_pool', *arguments).any()
        grads = kernels('deform_roi_pool_backward', torch.ones(R, 4, 2, 2), *arguments, True, True, True)
        assert all(grad.shape == x.shape and not grad.any() for grad, x in zip(grads, (arguments[0], arguments[2])))
    rois, offset = torch.tensor([[0.0, 0, 0, 8, 8]]).repeat(5, 1), torch.zeros(5, 2, 2, 2)
    rois[0, 0], rois[1, 0], rois[2, 3], offset[3, 1, 0, 1] = -1, 1, float('inf'), float('nan')
    nan = torch.zeros(5, 1, 2, 2, dtype=torch.bool)
    nan[:3], nan[3, :, 0, 1] = True, True
    arguments = torch.ones(1, 4, 6, 6), rois, offset, *options
    assert torch.equal(kernels('deform_roi_pool', *arguments).isnan().cpu(), nan.expand(5, 4, 2, 2))
    for deterministic in (False, True):
        grads = kernels('deform_roi_pool_backward', torch.ones(5, 4, 2, 2), *arguments, True, True, deterministic)
        assert grads[0].isfinite().all()
        assert torch.equal(grads[1].isnan().cpu(), nan.expand(5, 2, 2, 2))


def test_deterministic_pooling_in_any_order(host):
    kernels, rng = Kernels(torch.ops.mmdet_ddetr_cuda_on_host, 'cpu'), torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=rng) * 10
    rois = torch.cat((torch.zeros(40, 1), corners, corners + torch.rand(40, 2, generator=rng) * 12), 1)
    arguments = torch.randn(1, 12, 5, 6), rois, torch.randn(40, 2, 3, 3), (3, 3), 0.5, 0, 0.3, 1, False
    grad_output = torch.randn(40, 12, 3, 3, generator=rng)

    def grads(seed, deterministic):
        host.set_seed(seed)
        return kernels('deform_roi_pool_backward', grad_output, *arguments, True, True, deterministic)

    first, by_atomics = grads(1, True), grads(1, False)
    torch.testing.assert_close(first, by_atomics)
    for seed in range(2, 5):
        torch.testing.assert_close(grads(seed, True), first, rtol=0, atol=0)
    assert any(not torch.equal(grads(seed, False)[0], by_atomics[0]) for seed in range(2, 5))


@pytest.mark.parametrize('name', ['deform_conv2d', 'deform_conv2d_backward'])
def test_deform_conv_of_nothing(kernels, name):
    geometry = (1, 1), (1, 1), (1, 1)
    for B, C_out, H in ((0, 2, 4), (1, 0, 4), (1, 2, 0)):
        arguments = torch.ones(B, 4, H, 5), torch.ones(B, 18, H, 5), torch.ones(C_out, 4, 3, 3), *geometry, None
        if name == 'deform_conv2d':
            assert kernels(name, *arguments).shape == (B, C_out, H, 5)
        else:
            grads = kernels(name, torch.ones(B, C_out, H, 5), *arguments, True, True, False)
            assert all(grad.shape == x.shape and not grad.any() for grad, x in zip(grads, arguments[:3]))


def test_sizes_that_overflow(host):
    """Refused by the same checks as on the CPU."""
    kernels, case = Kernels(torch.ops.mmdet_ddetr_cuda_on_host, 'cpu'), Plain(B=1, Q=1, M=1, D=4, shapes=[(0, 0)], K=1)
    case.shapes = [(2**32, 2**32)]
    with pytest.raises(RuntimeError, match='spatial_shapes must be at most 16777216 in height and width'):
        case.forward(kernels)
    with pytest.raises(RuntimeError, match='spatial_shapes must be at most 16777216 in height and width'):
        case.backward(kernels)
    labels = torch.zeros(1, dtype=torch.long)
    huge = torch.empty(0).as_strided((2**40, 0, 1, 1), [0] * 4), torch.empty(0).as_strided((2**40, 0, 1, 4), [0] * 4)
    numbers, targets = labels[0].expand(2**40), torch.zeros(()).expand(2**40, 4)
    with pytest.raises(RuntimeError, match=r'the cost must have less than 2\^63 elements'):
        kernels('matching_cost', *huge, numbers, numbers, targets, 2.0, 5.0, 2.0, 0.25, 2.0, True)


def test_sixteen_bit_gradients_are_summed_in_fp32(kernels):
    """1000 equal terms: a sum in bf16 stands still at 256 times one of them."""
    case = Plain(B=1, Q=1000, M=1, D=8, shapes=[(1, 1)], K=1, dtype=torch.bfloat16)
    case.points[0].fill_(0.5)
    case.points[1].fill_(1.0)
    case.grad_output.fill_(1.0)
    assert case.backward(kernels)[0].flatten().tolist() == [1000] * 8
    assert case.backward(kernels, deterministic=True)[0].flatten().tolist() == [1000] * 8


def test_reference_gradient_on_request_only(kernels):
    case = Fused()
    with_it = case.backward(kernels, deterministic=True)
    case.flags = (False,)
    without = case.backward(kernels, deterministic=True)
    assert without[1].shape == (0,)
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(with_it, without)) if i != 1)


# --- sigmoid focal loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('gamma', [2.0, 0.0, 1.5])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('N, C', [(1, 1), (70, 3), (5, 32), (9, 91), (0, 5), (5, 0)])
def test_sigmoid_focal_loss(kernels, N, C, dtype, gamma):
    """Rows that do not fill a block, classes that do not fill a group of lanes; labels outside of the classes."""
    logits, labels = (4 * torch.randn(N, C, dtype=torch.float64)).to(dtype), torch.randint(-1, C + 2, (N,))
    for sum_classes in (False, True):
        exact = logits.double().requires_grad_()
        expected = reference.sigmoid_focal_loss(exact, labels, 0.25, gamma, sum_classes)
        loss = kernels('sigmoid_focal_loss', logits, labels, 0.25, gamma, sum_classes)
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(loss.cpu().double(), expected, rtol=5e-6, atol=1e-30)

        grad_output = torch.randn(expected.shape, dtype=loss.dtype)
        grad = kernels('sigmoid_focal_loss_backward', grad_output, logits, labels, 0.25, gamma)
        (expected,) = torch.autograd.grad(expected, exact, grad_output.double())
        assert grad.dtype == dtype
        info = torch.finfo(dtype)
        torch.testing.assert_close(grad.cpu().double(), expected, rtol=5e-6 + info.eps / 2, atol=info.smallest_normal)


@pytest.mark.parametrize('seed', [1, 2])
def test_focal_sums_in_any_order_of_threads(host, seed):
    kernels = Kernels(torch.ops.mmdet_ddetr_cuda_on_host, 'cpu')
    logits, labels = torch.randn(37, 45), torch.randint(45, (37,))
    first = kernels('sigmoid_focal_loss', logits, labels, 0.25, 2.0, True)
    host.set_seed(seed)
    assert torch.equal(kernels('sigmoid_focal_loss', logits, labels, 0.25, 2.0, True), first)


# --- matching cost ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_compiled_kernel('matching_cost', 'cpu'), reason='compared with the CPU kernel')
@pytest.mark.parametrize('focal, gamma', [(True, 2.0), (True, 1.5), (False, 2.0)])
@pytest.mark.parametrize('Q, T', [(1, 1), (7, 5), (300, 9), (0, 3), (3, 0)])
def test_matching_cost(kernels, Q, T, focal, gamma):
    """Rows that do not fill a block; fp64 and the CPU's kernel are compared in test_matching_cost.py."""
    scores, boxes, targets = torch.randn(2, 3, Q, 4), torch.rand(2, 3, Q, 4), torch.rand(T, 4)
    arguments = scores if focal else scores.softmax(-1), boxes, torch.randint(3, (T,)), torch.randint(4, (T,)), targets
    settings = 2.0, 5.0, 2.0, 0.25, gamma, focal
    expected = torch.ops.mmdet_ddetr.matching_cost(*arguments, *settings)
    cost = kernels('matching_cost', *arguments, *settings)
    torch.testing.assert_close(cost.cpu(), expected, rtol=2e-6, atol=1e-5)


def test_matching_cost_of_what_does_not_exist_is_nan(kernels):
    """An error would need a wait for the device; the assignment names the image of a cost that is not finite."""
    image, labels = torch.tensor([0, 2, 1, -1]), torch.tensor([4, 1, 3, 0])  # of two images and four classes
    arguments = torch.randn(1, 2, 5, 4), torch.rand(1, 2, 5, 4), image, labels, torch.rand(4, 4)
    cost = kernels('matching_cost', *arguments, 2.0, 5.0, 2.0, 0.25, 2.0, True)
    assert cost.isnan().all(2).tolist() == [[True, True, False, True]]


# --- the deterministic mode -------------------------------------------------------------------------------------------


def crowded(dtype=torch.float32):
    """Every cell gets hundreds of terms."""
    return Plain(B=1, Q=200, M=2, D=8, shapes=[(2, 2), (1, 1)], K=2, dtype=dtype)


@pytest.mark.parametrize('dtype', DTYPES)
def test_deterministic_whatever_the_order_of_threads(host, dtype):
    kernels, case = Kernels(torch.ops.mmdet_ddetr_cuda_on_host, 'cpu'), crowded(dtype)
    runs = []
    for seed in (0, 1, 2):
        host.set_seed(seed)
        runs.append([case.forward(kernels), *case.backward(kernels, deterministic=True)])
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
    assert_close(runs[0][1], case.expected()[1][0], dtype)


def test_the_other_mode_depends_on_the_order_in_grad_value_alone(host):
    """Shows that the seed does mix the threads: or else the test before would prove nothing."""
    kernels, case = Kernels(torch.ops.mmdet_ddetr_cuda_on_host, 'cpu'), crowded()
    runs = []
    for seed in (0, 1):
        host.set_seed(seed)
        runs.append(case.backward(kernels))
    assert not torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert torch.equal(runs[0][2], runs[1][2])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_deterministic_over_the_range_of_the_dtype(kernels, dtype):
    """Rows whose terms are near the smallest and the largest numbers are as exact as any."""
    case = Plain(B=1, Q=3, M=1, D=4, shapes=[(1, 1)] * 3, K=1, dtype=dtype)
    case.points[0].fill_(0.5)
    case.points[1].zero_()
    sizes = [torch.finfo(dtype).tiny, 1.0, torch.finfo(dtype).max / 8]
    for level, size in enumerate(sizes):
        case.points[1][0, :, 0, level, 0] = size
    case.grad_output.uniform_(1, 2)
    got = case.backward(kernels, deterministic=True)[0][0, :, 0]
    expected = case.grad_output.double().view(3, 4).sum(0) * torch.tensor(sizes, dtype=torch.float64)[:, None]
    torch.testing.assert_close(got.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_deterministic_does_not_hide_what_is_not_finite(kernels, bad):
    case = Plain(B=2, Q=2, M=2, D=4, shapes=[(2, 2)], K=1)
    case.points[0].fill_(0.75)  # cell 3
    case.grad_output[1, 0, 1] = bad  # image 1, head 0
    grad_value = case.backward(kernels, deterministic=True)[0]
    assert grad_value[1, 3, 0].isnan().all()
    assert grad_value.isnan().sum() == 4


# --- what only the CPU can show ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', [1, 2, 3])
@pytest.mark.parametrize('kind, D', list(itertools.product([Plain, Fused], [3, 8, 32, 130])))
def test_any_order_of_threads(host, kind, D, seed):
    """A missing synchronisation would show as a wrong result here."""
    host.set_seed(seed)
    check(kind(B=1, Q=5, M=3, D=D), Kernels(torch.ops.mmdet_ddetr_cuda_on_host, 'cpu'))


@pytest.mark.parametrize('kind', [Plain, Fused])
def test_sixty_four_bit_offsets_give_the_same(host, kind):
    kernels, case = Kernels(torch.ops.mmdet_ddetr_cuda_on_host, 'cpu'), kind(D=7, shapes=[(2, 3)] * 20)
    narrow = [case.forward(kernels), *case.backward(kernels)]
    host.set_int32_limit(1)
    wide = [case.forward(kernels), *case.backward(kernels)]
    assert all(map(torch.equal, narrow, wide))
    check(kind(D=8), kernels)


def test_kernel_launches(host):
    """One for the forward and the backward pass, three more in the deterministic mode, one for reference points."""
    kernels = Kernels(torch.ops.mmdet_ddetr_cuda_on_host, 'cpu')

    def count(call):
        before = host.launches()
        call()
        return host.launches() - before

    assert count(lambda: Plain().forward(kernels)) == 1
    assert count(lambda: Plain().backward(kernels)) == 1
    assert count(lambda: Plain().backward(kernels, deterministic=True)) == 4
    assert count(lambda: Fused().backward(kernels)) == 2
    assert count(lambda: Plain(Q=0).forward(kernels)) == 0


def test_every_quotient(host):
    """Division by multiplication, at the borders of the quotients."""
    host.quotient.restype = ctypes.c_int32
    for divisor in [1, 2, 3, 5, 7, 8, 71, 313, 22223, 65535, 65536, 65537, 2**30 - 1, 2**30 + 1, 2**31 - 1]:
        multiples = {k * divisor for k in (0, 1, 2, (2**31 - 1) // divisor // 2, (2**31 - 1) // divisor)}
        for x in {m + d for m in multiples for d in (-1, 0, 1)} | {2**31 - 1}:
            if 0 <= x < 2**31:
                assert host.quotient(ctypes.c_int32(x), ctypes.c_int64(divisor)) == x // divisor


# --- what only a GPU can show -----------------------------------------------------------------------------------------


def encoder(kind, dtype, **kwargs):
    """The encoder layer of an image of 800 x 1333: as many queries as cells, 22223 = 71 * 313."""
    shapes = [(100, 167), (50, 84), (25, 42), (13, 21)]
    return kind(B=2, Q=22223, M=8, D=32, shapes=shapes, K=4, dtype=dtype, **kwargs)


def near_a_border(case, distance=1e-4):
    """Samples of a case in fp64, [B, Q, M, L, K], where the bilinear weights are about to change cells."""
    sizes = torch.tensor([(W, H) for H, W in case.shapes], device=case.value.device)[:, None]
    if isinstance(case, Fused):
        references, offsets, _ = case.points
        cells = references[:, :, None, :, None] * sizes - 0.5 + offsets
    else:
        cells = case.points[0] * sizes - 0.5
    return ((cells - cells.round()).abs() < distance).any(-1)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('kind', [Plain, Fused])
def test_encoder(gpu, kind, dtype):
    case = encoder(kind, dtype)
    expected = encoder(kind, torch.float64)
    expected.value, expected.grad_output = case.value.double().cuda(), case.grad_output.double().cuda()
    expected.points = [x.double().cuda() for x in case.points]
    output, grads = expected.expected()
    assert_close(case.forward(gpu), output.cpu(), dtype, cells=167)
    grad_value, *grad_points = case.backward(gpu)
    assert_close(grad_value, grads[0].cpu(), dtype, cells=167)
    near = near_a_border(expected)  # there, fp32 and fp64 may sample different cells, of other derivatives
    assert near.float().mean() < 0.01
    for i, (got, grad) in enumerate(zip(grad_points, grads[1:])):
        skip = near.unsqueeze(-1) if got.shape[:5] == near.shape and got.ndim == 6 else None
        if kind is Fused and i == 0:  # of references: a sum over heads and points
            skip = near.any(4).any(2).unsqueeze(-1)
        if skip is not None:
            got, grad = got.masked_fill(skip.cpu(), 0), grad.masked_fill(skip, 0)
        assert_close(got, grad.cpu(), case.points[i].dtype, cells=167)


def test_deterministic_on_the_gpu(gpu):
    case = encoder(Plain, torch.float32)
    first = case.backward(gpu, deterministic=True)
    for _ in range(5):
        assert all(map(torch.equal, case.backward(gpu, deterministic=True), first))


def device_arguments(case):
    shapes = [side for shape in case.shapes for side in shape]
    return case.grad_output.cuda(), case.value.cuda(), shapes, *[x.cuda() for x in case.points]


@pytest.mark.parametrize('deterministic', [False, True])
def test_graph_capture(gpu, deterministic):
    """More levels than travel as an argument, too: their table has to be a part of the graph."""
    case = Plain(D=32, shapes=[(3, 5)] * 20, dtype=torch.bfloat16)
    grad_output, value, *rest = device_arguments(case)

    def step():
        backward = gpu.ops.ms_deform_attn_backward(grad_output, value, *rest, deterministic)
        return gpu.ops.ms_deform_attn(value, *rest), *backward

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    value.normal_()
    grad_output.normal_()
    graph.replay()
    for got, expected in zip(captured, step()):
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('deterministic', [False, True])
def test_no_synchronisation(gpu, deterministic):
    grad_output, value, *rest = device_arguments(Plain(D=32))
    torch.cuda.set_sync_debug_mode('error')
    try:
        gpu.ops.ms_deform_attn(value, *rest)
        gpu.ops.ms_deform_attn_backward(grad_output, value, *rest, deterministic)
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_current_stream(gpu):
    """The kernel waits for what its own stream does, and only for that."""
    _, value, *rest = device_arguments(Plain(D=32))
    expected = gpu.ops.ms_deform_attn(value + 1, *rest)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10**8)  # about 50 ms, in which a kernel on another stream would read the old value
        value += 1
        got = gpu.ops.ms_deform_attn(value, *rest)
    torch.cuda.synchronize()
    assert torch.equal(got, expected)
