"""The DC5 backbone against torchvision's definition, written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from mmdet_ddetr.backbones import ResNetDC5


def stage4_convs(blocks, bottleneck):
    """Name -> (kernel, stride, padding, dilation) of the convs of torchvision's layer4, stride replaced by dilation.

    ``_make_layer`` builds the first block with the dilation of the stage before, 1, and the others with 2.
    """
    convs = {}
    for block in range(blocks):
        dilation = 1 if block == 0 else 2
        if bottleneck:
            convs[f'{block}.conv1'] = (1, 1, 0, 1)
            convs[f'{block}.conv2'] = (3, 1, dilation, dilation)
            convs[f'{block}.conv3'] = (1, 1, 0, 1)
        else:
            # torchvision's basic blocks refuse a dilation; mmdet's dilate their first conv
            convs[f'{block}.conv1'] = (3, 1, dilation, dilation)
            convs[f'{block}.conv2'] = (3, 1, 1, 1)
    convs['0.downsample.0'] = (1, 1, 0, 1)
    return convs


@pytest.mark.parametrize(
    'depth, blocks',
    [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))],
)
def test_convs(depth, blocks):
    with torch.device('meta'):
        model, plain = ResNetDC5(depth), ResNet(depth)
    found = {
        name: (m.kernel_size[0], m.stride[0], m.padding[0], m.dilation[0])
        for name, m in model.layer4.named_modules()
        if isinstance(m, torch.nn.Conv2d)
    }
    assert found == stage4_convs(blocks[3], bottleneck=depth >= 50)
    assert {name: p.shape for name, p in model.state_dict().items()} == {
        name: p.shape for name, p in plain.state_dict().items()
    }
    for stage in (1, 2, 3):  # as in the plain network
        for a, b in zip(getattr(model, f'layer{stage}').modules(), getattr(plain, f'layer{stage}').modules()):
            if isinstance(a, torch.nn.Conv2d):
                assert (a.stride, a.padding, a.dilation) == (b.stride, b.padding, b.dilation)


@pytest.fixture
def backbones():
    """(DC5, mmdet's own dilated network) with equal, random weights."""
    torch.manual_seed(0)
    model = ResNetDC5(depth=50, base_channels=4, out_indices=(2, 3))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    theirs = ResNet(50, base_channels=4, out_indices=(2, 3), strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    theirs.load_state_dict(model.state_dict())
    for backbone in (model, theirs):
        backbone.eval()
    return model, theirs


def test_last_stage_against_functional_convs(backbones):
    """Three bottlenecks, written with F.conv2d and the dilations 1, 2, 2."""
    model, theirs = backbones
    image = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        c4, c5 = model(image)
        assert c4.shape[-2:] == c5.shape[-2:] == (6, 8), 'both of stride 16'
        weights = model.layer4.state_dict()

        def conv_bn(x, conv, bn, dilation=None):
            x = F.conv2d(x, weights[f'{conv}.weight'], padding=dilation or 0, dilation=dilation or 1)
            names = ('running_mean', 'running_var', 'weight', 'bias')
            return F.batch_norm(x, *(weights[f'{bn}.{name}'] for name in names), eps=1e-5)

        x = c4
        for block, dilation in enumerate((1, 2, 2)):
            identity = conv_bn(x, '0.downsample.0', '0.downsample.1') if block == 0 else x
            y = conv_bn(x, f'{block}.conv1', f'{block}.bn1').relu()
            y = conv_bn(y, f'{block}.conv2', f'{block}.bn2', dilation).relu()
            x = (conv_bn(y, f'{block}.conv3', f'{block}.bn3') + identity).relu()
        torch.testing.assert_close(c5, x, rtol=1e-5, atol=1e-5)
        assert (theirs(image)[1] - c5).abs().max() > 0.1 * c5.std(), "mmdet's dilations compute something else"


def test_registered():
    init_default_scope('mmdet')
    model = MODELS.build(dict(type='mmdet_ddetr.ResNetDC5', depth=18, out_indices=(3,), frozen_stages=1))
    assert isinstance(model, ResNetDC5)
    assert not any(p.requires_grad for p in model.layer1.parameters())
    with pytest.raises(TypeError, match='strides'):
        ResNetDC5(18, strides=(1, 2, 2, 2))
