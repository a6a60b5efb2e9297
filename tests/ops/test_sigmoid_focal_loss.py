"""Sigmoid focal loss: values and gradients against numbers worked out by hand and fp64, and inside PyTorch."""

import math

import pytest
import torch
from torch.autograd import forward_ad

from mmdet_ddetr import ops
from mmdet_ddetr.ops import reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
GAMMAS = [2.0, 0.0, 0.5, 1.0, 3.5]
EXACT = dict(rtol=0, atol=0)


def make(N, C, dtype=torch.float32, device='cpu', spread=6.0):
    """Logits that carry gradients, and labels of which some are background."""
    logits = (torch.randn(N, C, dtype=torch.float64) * spread).to(device, dtype).requires_grad_()
    return logits, torch.randint(0, C + 2, (N,)).to(device)


def naive(logits, labels, alpha, gamma):
    """The definition; loses digits where a probability is near 1."""
    p = logits.sigmoid()
    target = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    return torch.where(target, -alpha * (1 - p) ** gamma * p.log(), -(1 - alpha) * p**gamma * (1 - p).log())


# --- values -----------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    """sigmoid(0) = 1/2 and sigmoid(log 3) = 3/4."""
    logits = torch.tensor([[0.0, math.log(3)]] * 3, device=device)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 1, 2], device=device), alpha=0.25, gamma=2.0)
    positive = 0.25 * 0.5**2 * math.log(2), 0.25 * 0.25**2 * math.log(4 / 3)
    negative = 0.75 * 0.5**2 * math.log(2), 0.75 * 0.75**2 * math.log(4)
    expected = [[positive[0], negative[1]], [negative[0], positive[1]], negative]
    torch.testing.assert_close(loss.cpu(), torch.tensor(expected))


def test_gradient_by_hand(device):
    """At 0: alpha (gamma/4 log 2 + 1/2) / 4 for gamma = 2, with a minus for the target's class."""
    logits = torch.zeros(1, 2, device=device, requires_grad=True)
    ops.sigmoid_focal_loss(logits, torch.tensor([0], device=device)).sum().backward()
    slope = (0.5 * 2 * math.log(2) + 0.5) / 4
    torch.testing.assert_close(logits.grad.cpu(), torch.tensor([[-0.25 * slope, 0.75 * slope]]))


def test_gamma_0_is_weighted_cross_entropy(device):
    logits, labels = make(9, 4, device=device)
    target = torch.nn.functional.one_hot(labels, 6)[:, :4].float()
    weight = torch.where(target == 1, 0.3, 0.7)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, weight, reduction='none')
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, labels, 0.3, 0.0), expected)


@pytest.mark.parametrize('gamma', GAMMAS)
def test_reference_is_the_definition(gamma):
    logits, labels = make(40, 7, torch.float64, spread=2.0)
    loss, expected = reference.sigmoid_focal_loss(logits, labels, 0.25, gamma), naive(logits, labels, 0.25, gamma)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits), torch.autograd.grad(expected.sum(), logits))


@pytest.mark.parametrize('sum_classes', [False, True], ids=['each', 'sum'])
@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_against_fp64(dtype, gamma, sum_classes, device):
    """Numbers of classes around the width of a vector.

    exp and log1p are exact to 2 units in the last place; a power that is exp(gamma log(q)) adds as many as its exponent
    is large, up to 100: in the op if gamma is not 2, and in the reference.
    """
    units = 12 if gamma == 2 and dtype != torch.float64 else 100
    for C in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 80):
        logits, labels = make(29, C, dtype, device)
        exact = logits.detach().double().requires_grad_()
        expected = reference.sigmoid_focal_loss(exact, labels, 0.25, gamma, sum_classes)
        loss = ops.sigmoid_focal_loss(logits, labels, 0.25, gamma, sum_classes)
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        assert loss.shape == expected.shape
        info = torch.finfo(loss.dtype)
        rtol = units * info.eps
        torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=info.smallest_normal)

        grad_output = torch.randn_like(loss)
        (grad,) = torch.autograd.grad(loss, logits, grad_output)
        (expected,) = torch.autograd.grad(expected, exact, grad_output.double())
        assert grad.dtype == dtype
        info = torch.finfo(dtype)
        torch.testing.assert_close(grad.double(), expected, rtol=rtol + info.eps / 2, atol=info.smallest_normal)


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_huge_logits(dtype, gamma, device):
    """log(1 - sigmoid(x)) is -inf from 17 on in fp32, from 9 on in fp16. Far out the loss is linear, its slope a."""
    largest = min(torch.finfo(dtype).max, 1e38)
    logits = torch.tensor([[1e4, -1e4, largest, -largest, 30.0, -30.0]] * 7, dtype=dtype, device=device)
    labels = torch.arange(7, device=device)
    logits.requires_grad_()
    loss = ops.sigmoid_focal_loss(logits, labels, 0.25, gamma)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    target = torch.eye(7, 6, dtype=torch.bool, device=device)
    a = torch.where(target, 0.25, 0.75).double()
    wrong = torch.where(target, -logits.detach().double(), logits.detach().double()).clamp(min=0)
    torch.testing.assert_close(loss.double(), a * wrong, rtol=1e-6, atol=1e-7)
    slope = torch.where(wrong > 0, torch.where(target, -a, a), 0)
    torch.testing.assert_close(grad.double(), slope, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize('gamma', [2.0, 0.0, 0.5])
def test_what_is_not_finite_shows(gamma, device):
    inf, nan = math.inf, math.nan
    logits = torch.tensor([[inf, -inf, nan, 0.0], [inf, -inf, nan, 0.0]], device=device, requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 1], device=device), gamma=gamma)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss[:, :2].tolist() == [[0, 0], [inf, inf]]
    assert loss[:, 2].isnan().all() and grad[:, 2].isnan().all()
    assert loss[:, 3].isfinite().all() and grad[:, 3].isfinite().all(), 'a neighbour was hit'
    assert grad[1, :2].isnan().all()


def test_labels_out_of_range_are_background(device):
    logits, _ = make(6, 3, device=device)
    odd = torch.tensor([-1, 3, 99, 2**32 + 1, -(2**63), 2**63 - 1], device=device)
    expected = ops.sigmoid_focal_loss(logits, torch.full_like(odd, 3))
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, odd), expected, **EXACT)
    background = naive(logits.double(), torch.full_like(odd, 3), 0.25, 2.0)
    torch.testing.assert_close(expected.double(), background, rtol=5e-6, atol=0)  # fp32 against fp64


@pytest.mark.parametrize('sum_classes', [False, True], ids=['each', 'sum'])
@pytest.mark.parametrize(('N', 'C'), [(0, 5), (5, 0), (0, 0)])
def test_empty(N, C, sum_classes, device):
    logits = torch.zeros(N, C, device=device, requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.zeros(N, dtype=torch.long, device=device), sum_classes=sum_classes)
    assert loss.shape == ((N,) if sum_classes else (N, C))
    assert not loss.any()
    assert torch.autograd.grad(loss.sum(), logits)[0].shape == (N, C)


@pytest.mark.parametrize('sum_classes', [False, True], ids=['each', 'sum'])
def test_any_layout(sum_classes, device):
    logits, labels = make(7, 5, device=device)
    expected = ops.sigmoid_focal_loss(logits, labels, sum_classes=sum_classes)
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)  # of a sum, it is expanded from one number
    strided = logits.detach().T.contiguous().T.requires_grad_()
    spread = torch.stack([labels, labels + 1], 1)[:, 0]
    loss = ops.sigmoid_focal_loss(strided, spread, sum_classes=sum_classes)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), strided)[0], expected_grad, **EXACT)
    shifted = torch.cat([torch.zeros(1, device=device), logits.detach().flatten()])[1:].view(7, 5)
    torch.testing.assert_close(ops.sigmoid_focal_loss(shifted, labels, sum_classes=sum_classes), expected, **EXACT)


@pytest.mark.parametrize('sum_classes', [False, True], ids=['each', 'sum'])
def test_same_for_any_number_of_threads(sum_classes):
    logits, labels = make(4001, 21)
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss = ops.sigmoid_focal_loss(logits, labels, sum_classes=sum_classes)
        runs.append((loss, *torch.autograd.grad(loss.sum(), logits)))
    torch.set_num_threads(1)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
    last = ops.sigmoid_focal_loss(logits[-1:], labels[-1:], sum_classes=sum_classes)
    assert torch.equal(last, runs[0][0][-1:]), 'a row depends on the others'


# --- derivatives ------------------------------------------------------------------------------------------------------


def function_of_logits(gamma, sum_classes, device):
    logits, labels = make(5, 3, torch.float64, device, spread=2.0)
    return lambda x: ops.sigmoid_focal_loss(x, labels, 0.25, gamma, sum_classes), logits


@pytest.mark.parametrize('sum_classes', [False, True], ids=['each', 'sum'])
@pytest.mark.parametrize('gamma', GAMMAS)
def test_gradcheck(gamma, sum_classes, device):
    function, logits = function_of_logits(gamma, sum_classes, device)
    assert torch.autograd.gradcheck(function, logits, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, logits)


def test_torch_func(device):
    function, logits = function_of_logits(2.0, True, device)
    logits = logits.detach()
    hessian = torch.func.hessian(lambda x: function(x).sum())(logits)
    expected = torch.autograd.functional.hessian(lambda x: function(x).sum(), logits)
    torch.testing.assert_close(hessian, expected)
    assert expected.any()
    batch = torch.stack([logits, 2 * logits])
    torch.testing.assert_close(torch.vmap(function)(batch), torch.stack([function(x) for x in batch]))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(logits, torch.ones_like(logits)))).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(function, (logits,), (torch.ones_like(logits),))[1])
    assert tangent.all()


# --- inside of PyTorch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('sum_classes', [False, True], ids=['each', 'sum'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype, sum_classes, device):
    logits, labels = make(6, 3, dtype, device)
    torch.library.opcheck(torch.ops.mmdet_ddetr.sigmoid_focal_loss.default, (logits, labels, 0.25, 2.0, sum_classes))
    grad_output = torch.rand(6, device=device) if sum_classes else torch.rand(6, 3, device=device)
    backward = torch.ops.mmdet_ddetr.sigmoid_focal_loss_backward.default
    torch.library.opcheck(backward, (grad_output, logits.detach(), labels, 0.25, 2.0))


@pytest.mark.parametrize('dynamic', [False, True], ids=['static', 'dynamic'])
def test_compile_fullgraph(dynamic, device):
    torch._dynamo.reset()

    def function(logits, labels):
        return ops.sigmoid_focal_loss(logits * 2, labels, sum_classes=True) * 2

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend='aot_eager')
    for N in (6, 11)[: 1 + dynamic]:
        logits, labels = make(N, 3, device=device)
        got, expected = compiled(logits, labels), function(logits, labels)
        torch.testing.assert_close(got, expected, **EXACT)
        grads = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (got, expected)]
        torch.testing.assert_close(*grads, **EXACT)


def test_fp32_under_autocast(device):
    logits, labels = make(6, 3, torch.bfloat16, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = ops.sigmoid_focal_loss(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ops.sigmoid_focal_loss(logits.float(), labels), **EXACT)


@pytest.mark.parametrize('device_type', ['cpu', 'meta'])
def test_errors_name_the_argument(device_type):
    logits, labels = torch.zeros(4, 3, device=device_type), torch.zeros(4, dtype=torch.long, device=device_type)

    def refuses(match, *args, **kwargs):
        with pytest.raises(RuntimeError, match=match):
            ops.sigmoid_focal_loss(*args, **kwargs)

    refuses(r'logits must be \[N, C\], got \[4\]', logits[:, 0], labels)
    refuses('logits must be fp64, fp32, fp16 or bf16, got', logits.int(), labels)
    refuses(r'labels must be \[N\] = \[4\], got \[3\]', logits, labels[:3])
    refuses(r'labels must be \[N\] = \[4\], got \[4, 1\]', logits, labels[:, None])
    refuses('labels must be int64, got', logits, labels.int())
    refuses('gamma must not be negative, got -1', logits, labels, gamma=-1.0)
