"""RoI layers: mmcv's parameters and answers, plain pooling at first, in mmdet's extractor."""

import mmcv.ops
import pytest
import torch
from mmengine.registry import DefaultScope

from mmdet_ddetr import layers
from mmdet_ddetr.ops import deform_ps_roi_pool, deform_roi_pool
from mmdet_ddetr.registry import MODELS

PACKS = ['DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack']
SETTINGS = dict(output_size=(2, 3), output_channels=4, deform_fc_channels=8, spatial_scale=0.25, gamma=0.5)


@pytest.fixture(autouse=True)
def default_scope():
    """That of every config."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def make_inputs():
    torch.manual_seed(0)
    corners = torch.rand(5, 2) * 20
    rois = torch.cat((torch.arange(5)[:, None] % 2, corners, corners + 5 + torch.rand(5, 2) * 20), 1)
    return torch.randn(2, 4, 9, 11), rois


@pytest.mark.parametrize('kind', PACKS)
def test_mmcvs_pack_has_the_same_state_dict_and_answers_the_same(kind):
    """mmcv-lite's classes compute by this package's stand-in."""
    input, rois = make_inputs()
    ours, theirs = MODELS.build(dict(type=f'mmdet_ddetr.{kind}', **SETTINGS)), getattr(mmcv.ops, kind)(**SETTINGS)
    assert type(ours) is getattr(layers, kind) is not type(theirs)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    theirs.load_state_dict(ours.state_dict())
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    torch.testing.assert_close(ours(input, rois), theirs(input, rois))
    for layer in (ours, theirs):
        layer(input, rois).square().sum().backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert a.grad.any()
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f'{name}: {text}')


def test_mmcvs_plain_layer_answers_the_same():
    input, rois = make_inputs()
    settings = dict(output_size=(2, 3), spatial_scale=0.25, sampling_ratio=2, gamma=0.5)
    ours, theirs = layers.DeformRoIPool(**settings), mmcv.ops.DeformRoIPool(**settings)
    for offset in (None, torch.randn(5, 2, 2, 3)):
        torch.testing.assert_close(ours(input, rois, offset), theirs(input, rois, offset))


@pytest.mark.parametrize('kind', PACKS)
def test_a_new_pack_pools_plainly(kind):
    """Offsets of 0; factors of sigmoid(0)."""
    input, rois = make_inputs()
    factor = 1 if kind == 'DeformRoIPoolPack' else 0.5
    expected = factor * deform_roi_pool(input, rois, None, (2, 3), 0.25)
    torch.testing.assert_close(getattr(layers, kind)(**SETTINGS)(input, rois), expected)


def test_position_sensitive_pack():
    """Class-specific offsets come from a convolution of their own, pooled like score maps."""
    input, rois = make_inputs()
    settings = dict(group_size=2, pooled_size=4, part_size=2, spatial_scale=0.25)
    pack = MODELS.build(
        dict(type='mmdet_ddetr.DeformPSRoIPoolPack', in_channels=4, output_dim=6, offset_classes=3, **settings)
    )
    plain = layers.DeformPSRoIPoolPack(4, 6, 0, **settings)
    plain.conv.load_state_dict(pack.conv.state_dict())
    assert plain.conv_offset is None
    torch.testing.assert_close(pack(input, rois), plain(input, rois))
    torch.nn.init.normal_(pack.conv_offset.weight)
    offset = deform_ps_roi_pool(pack.conv_offset(input), rois, None, 0.25, 6, 2, 2)
    expected = deform_ps_roi_pool(pack.conv(input), rois, offset, 0.25, 6, 2, 4, part_size=2)
    assert pack(input, rois).shape == (5, 6, 4, 4)
    torch.testing.assert_close(pack(input, rois), expected)
    pack(input, rois).square().sum().backward()
    assert all(parameter.grad.any() for parameter in pack.parameters())
    with pytest.raises(ValueError, match='offset_classes must divide output_dim = 6, got 4'):
        layers.DeformPSRoIPoolPack(4, 6, 4)


@pytest.mark.parametrize('kind', [*PACKS, 'RoIAlign'])
def test_in_mmdets_extractor(kind):
    """A layer of each level, with the scale of its stride; mmcv's layers are still known by their names. Under autocast
    the maps may be narrow, or wide where a norm comes last."""
    ours = {} if kind == 'RoIAlign' else dict(output_channels=4, deform_fc_channels=8)
    extractor = MODELS.build(
        dict(
            type='mmdet_ddetr.SingleRoIExtractor',
            roi_layer=dict(type=kind if kind == 'RoIAlign' else f'mmdet_ddetr.{kind}', output_size=3, **ours),
            out_channels=4,
            featmap_strides=[4, 8],
        )
    )
    assert [layer.spatial_scale for layer in extractor.roi_layers] == [0.25, 0.125]
    assert all(type(layer).__name__ == kind for layer in extractor.roi_layers)
    rois = torch.tensor([[0.0, 2, 3, 30, 20], [1, 0, 0, 200, 150]])
    maps = torch.randn(2, 4, 40, 50), torch.randn(2, 4, 20, 25)
    pooled = extractor(maps, rois)
    for i in range(2):
        torch.testing.assert_close(pooled[i : i + 1], extractor.roi_layers[i](maps[i], rois[i : i + 1]))
    with torch.autocast('cpu', torch.bfloat16):
        assert extractor(maps, rois).dtype == torch.float32
        narrow = extractor([m.bfloat16() for m in maps], rois)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), pooled, rtol=0.05, atol=0.5)


@pytest.mark.parametrize(
    ('kind', 'name', 'wrong'),
    [
        ('DeformRoIPool', 'output_size', 0),
        ('DeformRoIPoolPack', 'output_size', (2, 3, 4)),
        ('DeformRoIPoolPack', 'output_channels', 0),
        ('ModulatedDeformRoIPoolPack', 'deform_fc_channels', 8.0),
        ('DeformPSRoIPool', 'pooled_size', 0),
        ('DeformPSRoIPool', 'group_size', (7, 7)),
        ('DeformPSRoIPoolPack', 'part_size', -1),
        ('DeformPSRoIPoolPack', 'sample_per_part', 0),
        ('DeformPSRoIPoolPack', 'offset_classes', -1),
    ],
)
def test_a_number_that_a_layer_cannot_have(kind, name, wrong):
    """Found when the layer is made, not in its first step."""
    right = dict(
        DeformRoIPool=dict(output_size=3),
        DeformPSRoIPool=dict(output_dim=4),
        DeformPSRoIPoolPack=dict(in_channels=4, output_dim=4),
    ).get(kind, SETTINGS)
    with pytest.raises(ValueError, match=f'^{name} must be .*whole numbers? of at least'):
        getattr(layers, kind)(**{**right, name: wrong})


@pytest.mark.parametrize('kind', PACKS)
def test_features_of_other_channels(kind):
    input, rois = make_inputs()
    with pytest.raises(ValueError, match='output_channels must be those of the features, 2, got 4'):
        getattr(layers, kind)(**SETTINGS)(input[:, :2], rois)


def test_a_roi_layer_that_does_not_exist():
    with pytest.raises(ValueError, match="roi_layer.type must be of a registry or of mmcv.ops, got 'RoIPoolPack'"):
        layers.SingleRoIExtractor(dict(type='RoIPoolPack', output_size=7), 4, [4])
