"""SMCA-DETR against its official code, which has no maintained port, and the known defects of that code.

The fixtures hold random weights of the official model (C = 16, 8 heads, 2 + 2 layers, no backbone), what it gives for
features cos(0), cos(1), ... of two padded images, and of each parameter's gradient the norm and the product with
cos(0), cos(1), ...: of the sum of logits and boxes, each times such a cosine. ``smca_detr.pt`` is of
gaopengcuhk/SMCA-DETR; the hard-coded width of its point's MLP was set to C. ``smca_detr_archive*.pt`` are of
Multi_scale_SMCA.zip in there, with 256 replaced by C and 6 by the number of layers: of models/transformer.py, and of
models/transformer_44_dot_4.py, whose levels share two convolutions. Each image went through the archive's code alone,
with its padding, because that code weighs the levels of all images as those of the first.
"""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from official import cosines, samples_of
from parity import TOLERANCE, without_gradient

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import ConversionReport, convert, find_layout
from mmdet_ddetr.checkpoints.coco_classes import IDS
from mmdet_ddetr.layers import (
    ConvExchange,
    MultiheadAttention,
    OwnLevelAttention,
    SMCAEncoder,
    SpatiallyModulatedAttention,
    sizes_in_cells,
)
from mmdet_ddetr.testing import make_batch, randomise, shrink

FIXTURES = Path(__file__).parent / 'fixtures'
SINGLE = 'smca-detr_r50_8xb2-50e_coco'
MULTI = 'smca-detr-multi-scale_r50_8xb1-50e_coco'
CONV = 'smca-detr-multi-scale-conv_r50_8xb1-50e_coco'
CASES = {
    'single-scale': ('smca_detr.pt', SINGLE, {}),
    'archive': ('smca_detr_archive.pt', CONV, dict(kernel_size=5, shared=False)),
    'archive, shared convolutions': ('smca_detr_archive_shared.pt', CONV, dict(kernel_size=7, shared=True)),
}
C, M, CLASSES = 16, 8, 3


def small(name, num_heads=M, scale_type='type3', own_maps=False, layers=(2, 2), **exchange):
    """The model of a config with C channels; R18 with as many in C5."""
    init_default_scope('mmdet')
    config = shrink(get_config(name).model)
    config.update(own_maps=own_maps, num_queries=10)
    for stack, number in zip((config.encoder, config.decoder), layers):
        stack.num_layers = number
        stack.layer_cfg.ffn_cfg.update(embed_dims=C, feedforward_channels=32)
        for cfg in (stack.layer_cfg[key] for key in ('self_attn_cfg', 'cross_attn_cfg') if key in stack.layer_cfg):
            cfg.update(embed_dims=C, **(dict(num_heads=num_heads) if 'num_heads' in cfg else exchange))
    config.decoder.layer_cfg.cross_attn_cfg.scale_type = scale_type
    config.backbone.update(base_channels=2, stem_channels=2)
    config.neck.update(in_channels=[channels // 32 for channels in config.neck.in_channels], out_channels=C)
    config.positional_encoding.num_feats = C // 2
    config.bbox_head.num_classes = CLASSES
    torch.manual_seed(0)
    return MODELS.build(config).eval()


def load(file):
    return torch.load(FIXTURES / file, weights_only=True)


def outputs(model, fixture):
    """Logits and boxes of all layers for the fixture's features."""
    feats = model.neck(tuple(cosines(shape) for shape in fixture['features']))
    return model.bbox_head(**model.forward_transformer(feats, samples_of(fixture)))


def fill(model, state_dict):
    """Load official weights without a backbone."""
    keys = model.load_state_dict(convert(state_dict), strict=False)
    assert not keys.unexpected_keys and all(key.startswith('backbone.') for key in keys.missing_keys)


@pytest.mark.parametrize('case', CASES)
def test_parity_with_the_official_code(case):
    """Measured: 1.4e-6 in logits, 1.8e-7 in boxes, 1e-5 of their norm in gradients."""
    file, config, exchange = CASES[case]
    fixture, model = load(file), small(config, **exchange)
    fill(model, fixture['state_dict'])
    logits, boxes = outputs(model, fixture)
    torch.testing.assert_close(logits, fixture['logits'], **TOLERANCE)
    torch.testing.assert_close(boxes, fixture['boxes'], **TOLERANCE)

    ((logits * cosines(logits.shape)).sum() + (boxes * cosines(boxes.shape, 1)).sum()).backward()
    branch = 'bbox_head.cls_branches.0.'
    ours = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
    of_classes = {f'class_embed.{name}': ours[branch + name] for name in ('weight', 'bias')}
    ours = {**convert(ours, source='mmdet_ddetr', target='official', classes='keep'), **of_classes}
    largest = max(norm for norm, _ in fixture['gradients'].values())
    for name, expected in fixture['gradients'].items():
        gradient = ours[name].flatten().double()
        found = [gradient.norm(), gradient @ torch.cos(torch.arange(len(gradient)).double())]
        assert max(abs(a - b) for a, b in zip(found, expected)) <= 1e-4 * expected[0] + 1e-6 * largest, name


@pytest.mark.parametrize('scale_type', ['type1', 'type2', 'type4'])
def test_parity_of_the_other_scale_types(scale_type):
    fixture, model = load('smca_detr.pt'), small(SINGLE, scale_type=scale_type)
    other = fixture['other_types'][scale_type]
    own = {key: value for key, value in fixture['state_dict'].items() if 'point3' not in key}
    fill(model, {**own, **other['state_dict']})
    for found, expected in zip(outputs(model, fixture), (other['logits'], other['boxes']), strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE)


class Sampled(torch.nn.Module):
    """A backbone that sees nothing beside a pixel: every 8th, 16th, ..., widened to the neck's channels."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):  # [B, 3, H, W]
        strides = [32 // 2**i for i in reversed(range(len(self.channels)))]
        return tuple(x[:, :, ::s, ::s].repeat(1, -(-c // 3), 1, 1)[:, :c] for s, c in zip(strides, self.channels))


def differs_in_a_batch(model, shapes):
    """How far an image's logits and boxes in a padded batch are from those of the image alone."""
    model.backbone = Sampled([conv.conv.in_channels for conv in model.neck.convs])
    inputs, samples = make_batch(shapes, [0] * len(shapes), CLASSES)
    difference = 0.0
    with torch.no_grad():
        together = model(inputs, samples, mode='tensor')
        for i, (h, w) in enumerate(shapes):
            samples[i].set_metainfo(dict(batch_input_shape=(h, w)))
            alone = model(inputs[i : i + 1, :, :h, :w], samples[i : i + 1], mode='tensor')
            for a, b in zip(together, alone, strict=True):
                difference = max(difference, (a[:, i : i + 1] - b).abs().max().item())
    return difference


@pytest.mark.parametrize('name', [SINGLE, MULTI, CONV])
def test_an_image_gets_the_same_in_any_batch(name):
    """Its own weights of levels included, where the archive gives all images those of the first."""
    model = randomise(small(name, own_maps=True), std=0.2)
    for shapes in ([(128, 192), (88, 97), (71, 201)], [(96, 64), (64, 96)]):
        assert differs_in_a_batch(model, shapes) < 1e-5


def test_convolutions_see_the_padding_as_in_the_archive():
    model = randomise(small(CONV), std=0.2)
    assert differs_in_a_batch(model, [(128, 128), (128, 128)]) < 1e-5
    assert differs_in_a_batch(model, [(128, 128), (64, 96)]) > 1e-3


def test_own_level_attention_is_attention_with_a_mask():
    torch.manual_seed(0)
    attention = randomise(OwnLevelAttention(8, 2, batch_first=True), std=0.3)
    shapes = [(2, 3), (1, 2)]
    x, position = torch.randn(2, 2, 8, 8).unbind()
    padding = torch.tensor([[False] * 8, [False, False, True, False, False, True, False, True]])
    level = torch.tensor([0] * 6 + [1] * 2)
    other = level[:, None] != level
    expected = MultiheadAttention.forward(attention, x, query_pos=position, attn_mask=other, key_padding_mask=padding)
    found = attention(x, query_pos=position, key_padding_mask=padding, spatial_shapes=shapes)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(('inter_layers', 'first'), [(None, 2), ((0,), 0), ((1, 3), 1), ((), None)])
def test_levels_meet_in_the_papers_inter_layers_alone(inter_layers, first):
    """By default in the middle one, the third of five."""
    attention = dict(embed_dims=8, num_heads=2, batch_first=True)
    layer = dict(self_attn_cfg=attention, ffn_cfg=dict(embed_dims=8, feedforward_channels=8))
    encoder = SMCAEncoder(num_layers=5, layer_cfg=layer, inter_layers=inter_layers).eval()
    outputs = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    x = torch.randn(1, 8, 8)
    inputs = dict(query_pos=torch.zeros(1, 8, 8), key_padding_mask=None, spatial_shapes=[(2, 3), (1, 2)])
    encoder(x, **inputs)
    x[:, 0] += 1
    encoder(x, **inputs)
    changed = [not torch.equal(a[:, 6:], b[:, 6:]) for a, b in zip(outputs[:5], outputs[5:])]
    assert changed == [first is not None and index >= first for index in range(5)]
    assert not torch.equal(outputs[0][:, 1:6], outputs[5][:, 1:6])


@pytest.mark.parametrize('name', [SINGLE, MULTI, CONV])
def test_other_depths_heads_and_widths(name):
    """The official codes have 8 heads, and in part 6 layers, 256 channels and 4 levels."""
    model = small(name, num_heads=2, layers=(1, 3))
    inputs, samples = make_batch([(64, 96), (57, 64)], [2, 1], CLASSES)
    losses = model.train()(inputs, samples, mode='loss')
    assert {'d0.loss_cls', 'd1.loss_iou', 'loss_bbox'} < set(losses) and 'd2.loss_cls' not in losses


def test_every_parameter_moves():
    """But keys' biases, the same for all keys, and the first self-attention, whose queries are all zero."""
    for name in (SINGLE, MULTI, CONV):
        still = without_gradient(randomise(small(name)), make_batch([(64, 96), (64, 96)], [3, 2], CLASSES))
        assert set(still) <= {'decoder.layers.0.self_attn.attn.in_proj_weight'}


def test_initial_gaussians():
    """All factors are 1, whatever the query; the first layer's points spread over the image."""
    model = small(MULTI, layers=(1, 2))
    model.init_weights()
    for layer in model.decoder.layers:
        assert not layer.cross_attn.scales.weight.any() and (layer.cross_attn.scales.bias == 1).all()
    bound = (6 / (C + 2 * 3 * M)) ** 0.5  # Xavier's, of the offsets
    offsets = model.decoder.layers[1].cross_attn.offsets.weight
    assert 0.8 * bound < offsets.abs().max() <= bound


def test_attention_against_a_loop():
    """Two levels: a softmax over the cells of each, of products plus log-Gaussians, then the query's level weights."""
    torch.manual_seed(0)
    M, D, shapes = 2, 3, [(2, 3), (1, 2)]
    attention = randomise(SpatiallyModulatedAttention(M * D, M, num_levels=2, smooth=[4.0, 2.0]), std=0.5).double()
    query, query_pos, place = torch.randn(3, 1, 2, M * D, dtype=torch.float64)
    key, key_pos = torch.randn(2, 1, 8, M * D, dtype=torch.float64)
    reference = torch.rand(1, 2, 2, dtype=torch.float64)
    sizes = torch.tensor([[[2.5, 1.5], [1.25, 0.75]]], dtype=torch.float64)  # of the image, in cells
    padding = torch.zeros(1, 8, dtype=torch.bool)
    padding[0, 5] = True
    found = attention(query, key, key, query_pos, key_pos, padding, reference, shapes, sizes, place)

    q_proj, k_proj, v_proj = (
        (lambda x, w=w, b=b: x @ w.T + b)
        for w, b in zip(attention.attn.in_proj_weight.chunk(3), attention.attn.in_proj_bias.chunk(3))
    )
    keys, values = k_proj(key + key_pos)[0], v_proj(key)[0]
    expected = []
    for q in range(2):
        offsets = attention.offsets(place)[0, q].view(2, M, 2)
        scales = attention.scales(place)[0, q].view(2, M, 2)
        shares = attention.level_logits(place)[0, q].softmax(-1)
        heads = []
        for m in range(M):
            of_head = slice(m * D, (m + 1) * D)
            total, cell = 0.0, 0
            for level, (H, W) in enumerate(shapes):
                logits, of_level = [], []
                for y in range(H):
                    for x in range(W):
                        dx, dy = reference[0, q] * sizes[0, level] + offsets[level, m] - torch.tensor([x, y])
                        a, b = scales[level, m] ** 2
                        gaussian = (a * dx**2 + b * dy**2) / [4.0, 2.0][level]
                        product = q_proj(query + query_pos)[0, q, of_head] @ keys[cell, of_head] / D**0.5
                        if not padding[0, cell]:
                            logits.append(product - gaussian)
                            of_level.append(values[cell, of_head])
                        cell += 1
                weights = torch.stack(logits).softmax(0)
                total = total + shares[level] * sum(w * v for w, v in zip(weights, of_level))
            heads.append(total)
        expected.append(query[0, q] + attention.attn.out_proj(torch.cat(heads)))
    # the Gaussians and the shares are in fp32
    torch.testing.assert_close(found[0], torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_sizes_in_cells():
    """Shares of a cell count; a short side does not tell its stride."""
    samples = [
        DetDataSample(metainfo=dict(img_shape=image, batch_input_shape=(80, 100))) for image in [(80, 100), (16, 90)]
    ]
    shapes = [(5, 7), (3, 4), (2, 2)]  # strides 16, 32, 64
    expected = [[[6.25, 5], [3.125, 2.5], [1.5625, 1.25]], [[5.625, 1], [2.8125, 0.5], [1.40625, 0.25]]]
    assert sizes_in_cells(shapes, samples, 'cpu').tolist() == expected
    assert sizes_in_cells(shapes, None, 'cpu').tolist() == [[[7, 5], [3.5, 2.5], [1.75, 1.25]]]
    narrow = [DetDataSample(metainfo=dict(img_shape=(64, 10), batch_input_shape=(64, 10)))]
    assert sizes_in_cells([(2, 1)], narrow, 'cpu').tolist() == [[[10 / 32, 2]]]


def test_official_keys():
    """The names of the official models, written by hand; the layout is found, and converting back changes nothing."""
    layer = 'transformer.decoder.layers.1.'
    for case, (file, *_) in CASES.items():
        official = load(file)['state_dict']
        assert {layer + 'point2.weight', layer + 'point3.bias', layer + 'norm4.weight'} < set(official)
        assert 'transformer.decoder.layers.0.point1.layers.2.weight' in official
        assert ('transformer.level_embed' in official) == ('input_proj_2048_3.bias' in official) == ('archive' in case)
        found = find_layout(official)
        assert (found.name, found.architecture) == ('official', found.architecture)
        assert found.architecture == ('SMCADETR' if case == 'single-scale' else 'multi-scale SMCADETR')
        ours = convert(official)
        assert len(ours['bbox_head.cls_branches.1.weight']) == CLASSES  # without the row that no target is of
        back = convert(ours, target='official')
        assert list(back['class_embed.bias'][CLASSES:]) == [-100.0]
        assert set(back) == set(official)
        for key, value in official.items():
            rows = slice(CLASSES) if 'class_embed' in key else slice(None)
            assert torch.equal(back[key][rows], value[rows]), key


def test_masks_have_the_official_names():
    """Those of DETR's mask head, beside a detector under ``detr.``; both ways."""
    init_default_scope('mmdet')
    config = get_config(SINGLE).model
    masks = dict(backbone=dict(out_indices=(0, 1, 2, 3)), mask_head=dict(in_channels=[1024, 512, 256]))
    config.update(masks, type='mmdet_ddetr.SMCADETRWithMasks')
    ours = MODELS.build(shrink(config)).state_dict()
    official = convert(ours, target='official')
    assert {'detr.transformer.decoder.layers.1.point2.weight', 'mask_head.lay1.weight'} < set(official)
    back = convert(official)
    assert set(back) == set(ours) and all(torch.equal(back[key], value) for key, value in ours.items())


def test_coco_rows():
    """92 official rows: 91 category ids and one of no class."""
    official = load('smca_detr.pt')['state_dict']
    official['class_embed.weight'], official['class_embed.bias'] = torch.randn(92, C), torch.randn(92)
    report = ConversionReport()
    ours = convert(official, report=report)
    assert ours['bbox_head.cls_branches.0.bias'].tolist() == official['class_embed.bias'][list(IDS)].tolist()
    assert report.resized['bbox_head.cls_branches.0.bias'].startswith('[92] -> [91], without the last row')
    assert convert(ours, target='official')['class_embed.bias'].shape == (92,)


def test_messages():
    with pytest.raises(ValueError, match="scale_type must be one of type1, type2, type3, type4, got 'type5'"):
        SpatiallyModulatedAttention(8, 2, scale_type='type5')
    with pytest.raises(ValueError, match=r'smooth must be a positive number, or one for each of num_levels=3, got \[8'):
        SpatiallyModulatedAttention(8, 2, num_levels=3, smooth=[8.0, 4.0])
    with pytest.raises(ValueError, match='smooth must be a positive number'):
        SpatiallyModulatedAttention(8, 2, smooth=0)
    with pytest.raises(ValueError, match='batch_first must be True'):
        SpatiallyModulatedAttention(8, 2, batch_first=False)
    layer = dict(self_attn_cfg=dict(embed_dims=8, num_heads=2), ffn_cfg=dict(embed_dims=8, feedforward_channels=8))
    with pytest.raises(ValueError, match=r'inter_layers must be of 0\.\.2, got \(3,\)'):
        SMCAEncoder(num_layers=3, layer_cfg=layer, inter_layers=(3,))
    with pytest.raises(ValueError, match='kernel_size must be odd, got 4'):
        ConvExchange(8, 2, kernel_size=4)
    with pytest.raises(ValueError, match='of 2 levels, num_levels, each half as large as the one before, got'):
        ConvExchange(8, 2)(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), spatial_shapes=[(2, 3), (1, 2), (1, 1)])
    model = small(SINGLE)
    with pytest.raises(ValueError, match='the neck gives 2 levels, num_feature_levels is 1'):
        model.pre_transformer((torch.zeros(1, C, 4, 4), torch.zeros(1, C, 2, 2)))
    config = get_config(MULTI).model
    config.decoder.layer_cfg.cross_attn_cfg.num_levels = 2
    with pytest.raises(ValueError, match='cross_attn_cfg.num_levels must equal num_feature_levels=3, got 2'):
        MODELS.build(config)
