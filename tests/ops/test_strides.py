"""Every op takes tensors of any strides, forward and backward, and answers as for contiguous ones."""

import pytest
import torch
from attention_cases import Case
from torch import Tensor

from mmdet_ddetr import ops


def transposed(x: Tensor) -> Tensor:
    """The last axis varies slowest."""
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def sliced(x: Tensor) -> Tensor:
    """A part of a larger tensor: of every axis from the second number on, the last one in steps of two."""
    large = x.new_full([n + 2 for n in x.shape[:-1]] + [2 * x.shape[-1] + 1], 7)
    view = large[tuple(slice(1, 1 + n) for n in x.shape[:-1]) + (slice(1, None, 2),)]
    return view.copy_(x)


def expanded(x: Tensor) -> Tensor:
    """The first along each of all axes but the last, with strides of 0."""
    return x[(slice(1),) * max(x.dim() - 1, 1)].expand(x.shape)


def attention(kind):
    case = Case(kind=kind, B=2, Q=4, M=2, D=4, K=2)
    return case.call, case.tensors


def deform_conv():
    x, offset = torch.randn(2, 4, 5, 6), torch.randn(2, 36, 5, 6)
    weight, bias, mask = torch.randn(6, 2, 3, 3), torch.randn(6), torch.rand(2, 18, 5, 6)
    return lambda *tensors: ops.deform_conv2d(*tensors[:4], padding=1, mask=tensors[4]), [x, offset, weight, bias, mask]


def depthwise_conv():
    tensors = [torch.randn(2, 4, 5, 6), torch.randn(4, 1, 3, 3), torch.randn(4)]
    return lambda *tensors: ops.depthwise_conv2d(*tensors, (2, 1), (1, 0, 1, 2)), tensors


def deform_roi_pool():
    rois = torch.tensor([[0, 1, 2, 5, 6], [1, 0, 1, 3, 4], [1, 2, 2, 4, 5.0]])
    return lambda *tensors: ops.deform_roi_pool(*tensors, 2), [torch.randn(2, 4, 5, 6), rois, torch.randn(3, 2, 2, 2)]


def deform_ps_roi_pool():
    _, (_, rois, offset) = deform_roi_pool()
    return lambda *tensors: ops.deform_ps_roi_pool(*tensors, 1.0, 2, 2, 2), [torch.randn(2, 8, 5, 6), rois, offset]


def focal_loss(sum_classes):
    labels = torch.tensor([0, 3, 4, 1, 0])
    return lambda *tensors: ops.sigmoid_focal_loss(*tensors, sum_classes=sum_classes), [torch.randn(5, 4), labels]


def matching_cost(focal):
    image, labels = torch.tensor([0, 0, 1]), torch.tensor([3, 0, 2])
    tensors = [torch.randn(2, 2, 5, 4), torch.rand(2, 2, 5, 4), image, labels, torch.rand(3, 4)]
    return lambda *tensors: ops.matching_cost(*tensors, 2.0, 5.0, 2.0, focal=focal), tensors


def assignment():
    return lambda costs: ops.linear_sum_assignment(costs, [2], [5], [1, 2]), [torch.rand(2 * 5 * 3)]


def dropout():
    def call(x):
        torch.manual_seed(0)  # the same elements each time
        return ops.dropout(x, 0.4)

    return call, [torch.randn(3, 4, 6)]


def dropout_matmul():
    def call(weights, value):
        torch.manual_seed(0)
        return ops.dropout_matmul(weights, value, 0.4)

    return call, [torch.randn(3, 4, 6), torch.randn(3, 6, 5)]


OPS = {
    'ms_deform_attn': lambda: attention('locations'),
    'ms_deform_attn_fused, points': lambda: attention('points'),
    'ms_deform_attn_fused, boxes': lambda: attention('boxes'),
    'deform_conv2d': deform_conv,
    'depthwise_conv2d': depthwise_conv,
    'deform_roi_pool': deform_roi_pool,
    'deform_ps_roi_pool': deform_ps_roi_pool,
    'sigmoid_focal_loss': lambda: focal_loss(False),
    'sigmoid_focal_loss, sums': lambda: focal_loss(True),
    'matching_cost': lambda: matching_cost(True),
    'matching_cost, softmax': lambda: matching_cost(False),
    'linear_sum_assignment': assignment,
    'dropout': dropout,
    'dropout_matmul': dropout_matmul,
    'nms_keep': lambda: (lambda boxes: ops.nms_keep(boxes, 0.3), [torch.rand(9, 4) * 9]),
}


def test_every_op_is_here():
    """A new op of ``mmdet_ddetr.ops`` joins the list above."""
    functions = set(ops.__all__) - {'has_compiled_kernel', 'host_shapes', 'reference'}
    assert functions == {name.split(',')[0] for name in OPS}


def run(call, tensors, grad_of):
    """Output and gradients of the arguments that may have one, for the gradient ``grad_of(output)``."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in tensors]
    output = call(*leaves)
    if not output.requires_grad:
        return [output]
    grads = torch.autograd.grad(
        output, [x for x in leaves if x.requires_grad], grad_of(output), allow_unused=True, materialize_grads=True
    )  # RoIs have no gradient
    return [output, *grads]


@pytest.mark.parametrize('layout', [transposed, sliced, expanded])
@pytest.mark.parametrize('name', OPS)
def test_strides(name, layout):
    """The arguments and the gradient of the output have the layout."""

    def grad_of(output):
        return layout(torch.linspace(-1, 1, output.numel()).view_as(output))

    call, tensors = OPS[name]()
    strided = [layout(x) for x in tensors]
    got = run(call, strided, grad_of)
    expected = run(call, [x.contiguous() for x in strided], lambda output: grad_of(output).contiguous())
    for tensor, other in zip(got, expected, strict=True):
        torch.testing.assert_close(tensor, other)


def test_strided_parts_of_one_tensor():
    """What users pass: halves of one projection, whose rows are wider than themselves."""
    case = Case(kind='points', M=2, K=2)
    together = torch.cat([x.flatten(2) for x in case.tensors[2:]], 2)  # offsets and logits of one linear layer
    sizes = [x[0, 0].numel() for x in case.tensors[2:]]
    parts = [p.unflatten(2, x.shape[2:]) for p, x in zip(together.split(sizes, 2), case.tensors[2:])]
    assert not any(part.is_contiguous() for part in parts)
    torch.testing.assert_close(case.call(*case.tensors[:2], *parts), case.call(*case.tensors))
