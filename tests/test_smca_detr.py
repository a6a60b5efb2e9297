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
from parity import TOLERANCE

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import convert
from mmdet_ddetr.testing import shrink

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


def cosines(shape, first=0):
    return torch.cos(first + torch.arange(torch.Size(shape).numel()).float()).view(shape)


def outputs(model, fixture):
    """Logits and boxes of all layers for the fixture's features."""
    samples = [
        DetDataSample(metainfo=dict(img_shape=tuple(image), batch_input_shape=tuple(fixture['padded'])))
        for image in fixture['images']
    ]
    feats = model.neck(tuple(cosines(shape) for shape in fixture['features']))
    return model.bbox_head(**model.forward_transformer(feats, samples))


def fill(model, state_dict):
    """Load official weights without a backbone."""
    keys = model.load_state_dict(convert(state_dict), strict=False)
    assert not keys.unexpected_keys and all(key.startswith('backbone.') for key in keys.missing_keys)


@pytest.mark.parametrize('case', CASES)
def test_parity_with_the_official_code(case):
    """Measured: 2e-6 in logits, 3e-7 in boxes, 5e-6 of the largest in gradients."""
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
        if expected[0] == 0:  # parameters of layers that the official code has and does not use
            continue
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
