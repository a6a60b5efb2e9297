"""Fixtures of other code bases, and how ours is compared with them.

A fixture holds random weights of a small model, rounded to fp16, without a backbone; what it gives for the features
cos(0), cos(1), ... of two padded images; and of each parameter's gradient the norm and the product with cos(0), cos(1),
...: of the sum of the outputs, each times such a cosine. A model with denoising queries has ground truth, too.
"""

from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from parity import TOLERANCE

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import convert
from mmdet_ddetr.layers import on_own_maps
from mmdet_ddetr.testing import shrink, without_dropout

FIXTURES = Path(__file__).parent / 'fixtures'


def load(file):
    return torch.load(FIXTURES / file, weights_only=True)


def small(name, fixture, layers, ffn, channels, num_heads=4, classes=3, **changes):
    """The model of a config, as small as that of a fixture, without dropout.

    Args:
        name: of the config.
        layers: of the encoder and of the decoder.
        ffn, channels, num_heads, classes: of the layers and of the head.
        changes: of the model's config, merged into it.
    """
    init_default_scope('mmdet')
    config = get_config(name)
    config.merge_from_dict(dict(model=changes))
    config = shrink(config.model)
    config.num_queries = 10
    for stack, number in zip((config.encoder, config.decoder), layers):
        stack.num_layers = number
        stack.layer_cfg.ffn_cfg.update(embed_dims=channels, feedforward_channels=ffn)
        for cfg in (stack.layer_cfg[key] for key in ('self_attn_cfg', 'cross_attn_cfg') if key in stack.layer_cfg):
            cfg.update(embed_dims=channels, num_heads=num_heads)
    config.backbone.update(base_channels=8, stem_channels=8)
    config.neck.update(in_channels=[shape[1] for shape in fixture['features']], out_channels=channels)
    config.positional_encoding.num_feats = channels // 2
    config.bbox_head.num_classes = classes
    torch.manual_seed(0)
    return without_dropout(MODELS.build(config))


def fill(model, fixture):
    """Load the weights of a fixture, as of a checkpoint of that code base."""
    state_dict = {key: value.float() for key, value in fixture['state_dict'].items()}
    keys = model.load_state_dict(convert(state_dict, classes='keep'), strict=False)
    assert not keys.unexpected_keys and all(key.startswith('backbone.') for key in keys.missing_keys), keys


def cosines(shape, first=0):
    return torch.cos(first + torch.arange(torch.Size(shape).numel()).float()).view(shape)


def samples_of(fixture):
    samples = [
        DetDataSample(metainfo=dict(img_shape=tuple(image), batch_input_shape=tuple(fixture['padded'])))
        for image in fixture['images']
    ]
    for sample, labels, boxes in zip(samples, fixture.get('labels', ()), fixture.get('targets', ())):
        h, w = sample.img_shape
        bboxes = bbox_cxcywh_to_xyxy(torch.tensor(boxes)) * torch.tensor([w, h, w, h])
        sample.gt_instances = InstanceData(labels=torch.tensor(labels), bboxes=bboxes)
    return samples


def head_inputs(model, fixture, alone=None):
    """What the model's head gets of the fixture's features; of those of image ``alone``, without padding."""
    maps, samples = [cosines(shape) for shape in fixture['features']], samples_of(fixture)
    if alone is not None:
        (H, W), (h, w) = fixture['padded'], fixture['images'][alone]
        cells = [(-(-h * level.shape[2] // H), -(-w * level.shape[3] // W)) for level in maps]
        maps = [level[alone : alone + 1, :, :rows, :columns] for level, (rows, columns) in zip(maps, cells)]
        samples = [DetDataSample(metainfo=dict(img_shape=(h, w), batch_input_shape=(h, w)))]
    feats = on_own_maps(model.neck, maps, samples) if model.own_maps else model.neck(tuple(maps))
    return model.forward_transformer(feats, samples)


def assert_parity(model, fixture, target, further=()):
    """Logits and boxes of all layers, and the gradients of all parameters.

    Args:
        target: the layout of the fixture.
        further: (name in the fixture, name among the head's inputs) of other outputs.

    Returns:
        the largest differences, of logits, of boxes, and of the gradients' norms in units of the norm.
    """
    inputs = head_inputs(model, fixture)
    logits, boxes = model.bbox_head(**inputs)
    outputs = [(logits, fixture['logits'], 0), (boxes, fixture['boxes'], 1)]
    outputs += [(inputs[ours], fixture[theirs], 0) for theirs, ours in further]
    for found, expected, _ in outputs:
        torch.testing.assert_close(found, expected, **TOLERANCE)
    model.zero_grad()
    sum((found * cosines(found.shape, first)).sum() for found, _, first in outputs).backward()
    gradients = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
    ours = convert(gradients, source='mmdet_ddetr', target=target, classes='keep')
    largest, worst = max(norm for norm, _ in fixture['gradients'].values()), 0.0
    for name, expected in fixture['gradients'].items():
        gradient = ours[name].flatten().double()
        found = [gradient.norm(), gradient @ torch.cos(torch.arange(len(gradient)).double())]
        difference = max(abs(a - b) for a, b in zip(found, expected))
        assert difference <= 1e-4 * expected[0] + 1e-6 * largest, name
        worst = max(worst, float(difference / (expected[0] + 1e-2 * largest)))
    return [float((found - expected).abs().max()) for found, expected, _ in outputs[:2]] + [worst]
