"""BiFPN against its formulas, written out cell by cell."""

import pytest
import torch

from mmdet_ddetr.necks import BiFPN
from mmdet_ddetr.necks.bifpn import BiFPNLayer, Node
from mmdet_ddetr.registry import MODELS
from mmdet_ddetr.testing import randomise

SIZES = [(7, 9), (4, 5), (2, 3)]  # every level half of the one before, rounded up


def identity(node):
    """Make the node's convolution pass its input on."""
    depthwise, pointwise = node.conv.depthwise_conv.conv, node.conv.pointwise_conv.conv
    with torch.no_grad():
        depthwise.weight.zero_()
        depthwise.weight[:, :, 1, 1] = 1
        pointwise.weight.copy_(torch.eye(len(pointwise.weight))[:, :, None, None])
    return node


def swish(x):
    return x / (1 + torch.exp(-x))


def test_fusion_by_hand():
    """Weights 3, 1 and -5: the negative one counts nothing, the others three and one quarter."""
    node = identity(Node(3, 2, None, eps=0.0))
    with torch.no_grad():
        node.weights.copy_(torch.tensor([3.0, 1.0, -5.0]))
    maps = [torch.full((1, 2, 2, 2), value) for value in (4.0, 8.0, 100.0)]
    expected = 5 / (1 + torch.exp(torch.tensor(-5.0)))
    torch.testing.assert_close(node(*maps), expected.expand(1, 2, 2, 2))
    with torch.no_grad():
        node.weights.zero_()
    node.eps = 1e-4
    assert not node(*maps).any()  # and not nan


def fuse(node, *maps):
    weights = [max(weight, 0) for weight in node.weights.tolist()]
    return node.conv(swish(sum(weight * x for weight, x in zip(weights, maps)) / (sum(weights) + node.eps)))


def upsampled(x, size):
    """Nearest neighbour by index."""
    rows = torch.tensor([i * x.shape[2] // size[0] for i in range(size[0])])
    columns = torch.tensor([j * x.shape[3] // size[1] for j in range(size[1])])
    return x[:, :, rows][..., columns]


def pooled(x, size):
    """Largest of the 3 x 3 cells around every second."""
    output = x.new_zeros(*x.shape[:2], *size)
    for i in range(size[0]):
        for j in range(size[1]):
            window = x[:, :, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
            output[:, :, i, j] = window.flatten(2).max(-1)[0]
    return output


def test_layer_against_the_paper():
    """Figure 2 (d) and the equations of section 3.3, here for three levels, with other weights in every node."""
    layer = randomise(BiFPNLayer(4, 3, None, eps=1e-4), std=0.5)
    p3, p4, p5 = (torch.randn(2, 4, *size) for size in SIZES)
    with torch.no_grad():
        td4 = fuse(layer.down[1], p4, upsampled(p5, SIZES[1]))
        out3 = fuse(layer.down[0], p3, upsampled(td4, SIZES[0]))
        out4 = fuse(layer.up[0], p4, td4, pooled(out3, SIZES[1]))
        out5 = fuse(layer.up[1], p5, pooled(out4, SIZES[2]))
        outputs = layer((p3, p4, p5))
    assert len(outputs) == 3
    for output, expected in zip(outputs, (out3, out4, out5)):
        torch.testing.assert_close(output, expected)


def test_neck():
    """Two backbone levels, four out: the third from the backbone's last, the fourth from the third."""
    neck = MODELS.build(
        dict(
            type='mmdet_ddetr.BiFPN',
            in_channels=[6, 10],
            out_channels=8,
            num_outs=4,
            num_layers=2,
            norm_cfg=dict(type='BN'),
        )
    )
    inputs = (torch.randn(2, 6, 13, 18), torch.randn(2, 10, 7, 9))
    outputs = neck(inputs)
    assert [tuple(x.shape) for x in outputs] == [(2, 8, 13, 18), (2, 8, 7, 9), (2, 8, 4, 5), (2, 8, 2, 3)]
    sum(x.square().mean() for x in outputs).backward()
    assert all(p.grad is not None and p.grad.any() for p in neck.parameters())

    given = []
    neck.layers.register_forward_pre_hook(lambda module, args: given.extend(args[0]))
    neck.eval()
    with torch.no_grad():
        neck(inputs)
        third = pooled(neck.extra(inputs[1]), (4, 5))
        for level, expected in zip(given, (neck.laterals[0](inputs[0]), neck.laterals[1](inputs[1]), third)):
            torch.testing.assert_close(level, expected)
        torch.testing.assert_close(given[3], pooled(third, (2, 3)))


def test_every_level_reaches_every_other():
    neck = BiFPN([4, 4], 4, num_outs=4, num_layers=1, norm_cfg=None)
    inputs = [torch.randn(1, 4, 16, 16, requires_grad=True), torch.randn(1, 4, 8, 8, requires_grad=True)]
    for output in neck(tuple(inputs)):
        assert all(grad.any() for grad in torch.autograd.grad(output.sum(), inputs, retain_graph=True))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match='num_outs must be at least 2 and as many as in_channels, got 2 for 3'):
        BiFPN([4, 4, 4], 4, num_outs=2)
    neck = BiFPN([4, 4], 4, num_outs=3)
    with pytest.raises(ValueError, match=r'inputs must be 2 levels \(in_channels\), got 1'):
        neck((torch.zeros(1, 4, 8, 8),))
    with pytest.raises(ValueError, match=r'half of the one before, rounded up, got sizes \[9, 8\] and \[4, 4\]'):
        neck((torch.zeros(1, 4, 9, 8), torch.zeros(1, 4, 4, 4)))
