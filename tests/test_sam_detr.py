"""SAM-DETR against its official code, which has no maintained port, and the known defects of that code.

The fixtures hold random weights, rounded to fp16, of ZhangGongjie/SAM-DETR (C = 16, 2 encoder layers, no backbone), and
what it gives for features cos(0), cos(1), ... of two images, in a padded batch and each alone. Of each parameter's
gradient they hold the norm and the product with cos(0), cos(1), ...: of the sum of logits and boxes, each times such a
cosine. Changed for it was what the code hard-codes (256 channels, the widths of the point MLP, the groups of the neck's
norm, 8 heads on several levels), and the order of a sum: the positions of padding are sines of numbers near 10^6, which
rounding decides.
"""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from parity import TOLERANCE

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import convert, find_layout
from mmdet_ddetr.layers import on_own_maps
from mmdet_ddetr.testing import randomise, shrink

FIXTURES = Path(__file__).parent / 'fixtures'
PLAIN = 'sam-detr_r50_4xb4-50e_coco'
CASES = {  # file, config, heads, decoder layers, width of the decoder's FFN
    'plain': ('sam_detr.pt', PLAIN, 8, 3, 32),
    'Gaussians, norm in the neck': ('sam_detr_smca.pt', 'sam-detr-smca_r50_4xb4-12e_coco', 8, 3, 32),
    'Gaussians, three levels': (
        'sam_detr_smca_multi_scale.pt',
        'sam-detr-smca-multi-scale_r50_8xb2-12e_coco',
        4,
        6,
        64,
    ),
}
C, CLASSES = 16, 3


def small(name=PLAIN, num_heads=8, decoder_layers=3, ffn=32, **changes):
    """The model of a config with C channels; R18 with as many in C5."""
    init_default_scope('mmdet')
    config = shrink(get_config(name).model)
    config.update(num_queries=10, **changes)
    for stack, number, width in ((config.encoder, 2, 32), (config.decoder, decoder_layers, ffn)):
        stack.num_layers = number
        stack.layer_cfg.ffn_cfg.update(embed_dims=C, feedforward_channels=width)
        for cfg in (stack.layer_cfg[key] for key in ('self_attn_cfg', 'cross_attn_cfg') if key in stack.layer_cfg):
            cfg.update(embed_dims=C, num_heads=num_heads)
    config.decoder.layer_cfg.cross_attn_cfg.hidden_dims = (8, 16, 16)
    config.backbone.update(base_channels=2, stem_channels=2)
    config.neck.update(in_channels=[channels // 32 for channels in config.neck.in_channels], out_channels=C)
    if config.neck.norm_cfg:
        config.neck.norm_cfg.num_groups = 4
    config.positional_encoding.num_feats = C // 2
    config.bbox_head.num_classes = CLASSES
    torch.manual_seed(0)
    return MODELS.build(config).eval()


def load(file):
    """The fixture, with its weights by official names."""
    fixture = torch.load(FIXTURES / file, weights_only=True)
    sizes = [torch.Size(shape).numel() for shape in fixture['shapes'].values()]
    weights = fixture['weights'].float().split(sizes)
    fixture['state_dict'] = {
        name: tensor.view(shape) for (name, shape), tensor in zip(fixture['shapes'].items(), weights)
    }
    return fixture


def official_pair(case, boxes_on_padding):
    """(fixture, our model with its weights)."""
    file, name, *sizes = CASES[case]
    fixture, model = load(file), small(name, *sizes)
    for layer in model.decoder.layers:
        layer.cross_attn.aligner.boxes_on_padding = boxes_on_padding
    keys = model.load_state_dict(convert(fixture['state_dict']), strict=False)
    assert not keys.unexpected_keys and all(key.startswith('backbone.') for key in keys.missing_keys)
    return fixture, model


def cosines(shape, first=0):
    return torch.cos(first + torch.arange(torch.Size(shape).numel()).float()).view(shape)


def samples_of(fixture):
    return [
        DetDataSample(metainfo=dict(img_shape=tuple(image), batch_input_shape=tuple(fixture['padded'])))
        for image in fixture['images']
    ]


@pytest.mark.parametrize('case', CASES)
def test_parity_with_the_official_code(case):
    """Of a padded batch. Measured: 2e-6 in logits, 3e-7 in boxes, 2e-5 of each in gradients."""
    fixture, model = official_pair(case, boxes_on_padding=True)
    feats = model.neck(tuple(cosines(shape) for shape in fixture['features']))
    logits, boxes = model.bbox_head(**model.forward_transformer(feats, samples_of(fixture)))
    torch.testing.assert_close(logits, fixture['logits'], **TOLERANCE)
    torch.testing.assert_close(boxes, fixture['boxes'], **TOLERANCE)

    ((logits * cosines(logits.shape)).sum() + (boxes * cosines(boxes.shape, 1)).sum()).backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    ours = convert(ours, source='mmdet_ddetr', target='official', classes='keep')
    largest = fixture['gradients'][:, 0].max()
    for name, expected in zip(fixture['shapes'], fixture['gradients']):
        gradient = ours[name].flatten().double()
        found = torch.stack([gradient.norm(), gradient @ torch.cos(torch.arange(len(gradient)).double())])
        assert (found - expected).abs().max() <= 1e-4 * expected[0] + 1e-6 * largest, name


@pytest.mark.parametrize('case', CASES)
def test_an_image_of_a_padded_batch_gets_what_the_official_code_gives_it_alone(case):
    """In the official code, boxes read the padding; what lies there depends on the other images."""
    fixture, model = official_pair(case, boxes_on_padding=False)
    samples = samples_of(fixture)
    with torch.no_grad():
        feats = on_own_maps(model.neck, tuple(cosines(shape) for shape in fixture['features']), samples)
        model.own_maps = True
        logits, boxes = model.bbox_head(**model.forward_transformer(feats, samples))
    torch.testing.assert_close(logits, fixture['alone']['logits'], **TOLERANCE)
    torch.testing.assert_close(boxes, fixture['alone']['boxes'], **TOLERANCE)
    assert (fixture['logits'] - fixture['alone']['logits']).abs().max() > 0.05


@pytest.mark.parametrize('classes', [80, 91])
@pytest.mark.parametrize('name', ['sam-detr_r50_4xb4-12e_coco', CASES['Gaussians, three levels'][1]])
def test_official_layout(name, classes):
    """There and back, bit for bit, of a whole detector, and recognised on both sides."""
    model = small(name)
    state_dict = randomise(model).state_dict()
    for key in [key for key in state_dict if 'cls_branches' in key]:
        state_dict[key] = torch.randn(classes, *state_dict[key].shape[1:])
    official = convert(state_dict, target='official')
    layout = find_layout(official)
    assert (layout.name, layout.architecture) == ('official', 'SAMDETR')
    assert find_layout(state_dict).architecture == 'SAMDETR'
    assert len(official['class_embed.2.bias']) == 91
    assert torch.equal(
        official['transformer.decoder.bbox_embed.1.layers.2.bias'], official['bbox_embed.1.layers.2.bias']
    )
    back = convert(official)
    assert back.keys() == state_dict.keys()
    if classes == 80:
        for key in state_dict:
            assert 'num_batches_tracked' in key or torch.equal(back[key], state_dict[key]), key
    else:
        assert len(back['bbox_head.cls_branches.0.bias']) == 80
