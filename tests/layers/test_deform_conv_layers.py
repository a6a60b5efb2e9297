"""DCN and DCNv2 as layers: by name in a backbone, with mmcv's parameters and results."""

import mmcv.ops  # noqa: F401  registers mmcv's packs
import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer
from mmengine.registry import DefaultScope

from mmdet_ddetr.layers import DCN, DCNv2
from mmdet_ddetr.registry import MODELS

KINDS = {'DCN': DCN, 'DCNv2': DCNv2}
SETTINGS = dict(kernel_size=3, stride=2, padding=2, dilation=2, groups=2, deform_groups=4, bias=False)


@pytest.fixture(autouse=True)
def default_scope():
    """That of every config."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.mark.parametrize('kind', KINDS)
def test_mmcvs_pack_has_the_same_state_dict_and_answers_the_same(kind):
    """With a compiled mmcv by its own kernels."""
    torch.manual_seed(0)
    ours = build_conv_layer(dict(type=f'mmdet_ddetr.{kind}'), 8, 4, **SETTINGS)
    theirs = build_conv_layer(dict(type=kind), 8, 4, **SETTINGS)
    assert type(ours) is KINDS[kind]
    assert type(theirs) is not KINDS[kind]
    torch.nn.init.normal_(ours.conv_offset.bias)
    torch.nn.init.normal_(ours.conv_offset.weight, std=0.1)
    theirs.load_state_dict(ours.state_dict())
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    x = torch.randn(2, 8, 9, 11)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('kind', KINDS)
def test_a_new_layer_is_a_plain_convolution(kind):
    """Offsets of 0; factors of sigmoid(0)."""
    layer, x = KINDS[kind](6, 4, 3, padding=1, groups=2, bias=True), torch.randn(2, 6, 5, 7)
    torch.nn.init.normal_(layer.bias)
    factor = 1 if kind == 'DCN' else 0.5
    expected = F.conv2d(x, factor * layer.weight, layer.bias, padding=1, groups=2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_in_a_backbone(kind):
    backbone = dict(
        type='mmdet.ResNet',
        depth=50,
        base_channels=8,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN'),
        dcn=dict(type=f'mmdet_ddetr.{kind}', deform_groups=2),
        stage_with_dcn=(False, True, True, True),
    )
    model = MODELS.build(backbone)
    layers = [m for m in model.modules() if isinstance(m, KINDS[kind])]
    assert len(layers) == 4 + 6 + 3
    sum(out.square().mean() for out in model(torch.randn(1, 3, 64, 96))).backward()
    assert all(layer.conv_offset.weight.grad.any() and layer.weight.grad.any() for layer in layers)


def test_in_a_neck():
    """Its ``init_cfg`` is of plain convolutions; offsets still start at 0."""
    conv = dict(type='mmdet_ddetr.DCNv2')
    neck = MODELS.build(dict(type='mmdet.FPN', in_channels=[4, 8], out_channels=4, num_outs=2, conv_cfg=conv))
    neck.init_weights()
    layers = [m for m in neck.modules() if isinstance(m, DCNv2)]
    assert len(layers) == 4
    assert not any(layer.conv_offset.weight.any() for layer in layers)
    assert [out.shape[1:] for out in neck((torch.randn(1, 4, 6, 8), torch.randn(1, 8, 3, 4)))] == [(4, 6, 8), (4, 3, 4)]


def test_groups_that_do_not_divide():
    with pytest.raises(ValueError, match='in_channels must be a multiple of deform_groups = 3, got 4'):
        DCN(4, 4, 3, deform_groups=3)
    with pytest.raises(ValueError, match='out_channels must be a multiple of groups = 2, got 3'):
        DCNv2(4, 3, 3, groups=2)


@pytest.mark.parametrize(
    ('name', 'wrong', 'least'),
    [
        ('groups', 0, 1),
        ('deform_groups', -1, 1),
        ('out_channels', 4.0, 1),
        ('kernel_size', 0, 1),
        ('kernel_size', (3, 3, 3), 1),
        ('stride', '2', 1),
        ('dilation', (1, 0), 1),
        ('padding', 'same', 0),
        ('padding', -1, 0),
    ],
)
def test_a_number_that_a_layer_cannot_have(name, wrong, least):
    """Found when the layer is made, not in its first step."""
    with pytest.raises(ValueError, match=rf'^{name} must be .*whole numbers? of at least {least}, got'):
        DCNv2(**{**dict(in_channels=4, out_channels=4, kernel_size=3), name: wrong})
