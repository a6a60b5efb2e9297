"""DETR with masks against ``transformers.DetrForSegmentation``, with converted weights; skipped where it is missing."""

import huggingface
import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import convert
from mmdet_ddetr.registry import MODELS
from mmdet_ddetr.testing import make_batch, shrink

transformers = pytest.importorskip('transformers')

C, NUM_CLASSES = 128, 7
# fp32 sums in another order, through the whole model: measured 1.2e-5 on masks, which differ by 8e-3 between queries.
TOLERANCE = dict(rtol=1e-4, atol=5e-5)


def small_config():
    """The published model with R18, 2 + 3 layers, 20 queries and 128 channels: GroupNorm needs 8 in the last layer."""
    cfg = shrink(get_config('detr-masks_r50_8xb2-25e_coco').model)
    for part in (cfg.encoder.layer_cfg, cfg.decoder.layer_cfg):
        for name in {'self_attn_cfg', 'cross_attn_cfg', 'ffn_cfg'} & set(part):
            part[name].embed_dims = C
        part.ffn_cfg.feedforward_channels = 64
    cfg.neck.out_channels = cfg.mask_head.embed_dims = C
    cfg.positional_encoding.num_feats = C // 2
    cfg.bbox_head.num_classes = NUM_CLASSES
    return cfg


@pytest.fixture(scope='module')
def theirs():
    config = huggingface.detr_config(NUM_CLASSES, ['stage1', 'stage2', 'stage3', 'stage4'], d_model=C)
    torch.manual_seed(0)
    model = transformers.DetrForSegmentation(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'backbone' in name:  # noise would make its activations drown what a query does to its mask
                continue
            if parameter.dim() > 1:  # its initial weights make all queries answer alike
                nn.init.xavier_uniform_(parameter, gain=3.0 if name.startswith('bbox_attention') else 1.0)
            if name.endswith('query_position_embeddings.weight'):
                nn.init.normal_(parameter)
            parameter += 0.05 * torch.randn_like(parameter)
            if 'input_projection' in name or 'adapter' in name:
                parameter *= 0.01  # so do features: attention weights are below 1
        for name, buffer in model.named_buffers():
            if name.endswith('running_var'):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith('running_mean'):
                buffer.uniform_(-0.2, 0.2)
    return model


@pytest.fixture(scope='module')
def ours(theirs):
    init_default_scope('mmdet')
    model = MODELS.build(small_config()).eval()
    model.load_state_dict(convert(theirs.state_dict(), source='huggingface', classes='keep'), strict=True)
    return model


@pytest.mark.parametrize('shapes', [[(96, 128), (75, 97)], [(96, 128)]], ids=['padded', 'one image'])
def test_outputs_and_losses(theirs, ours, shapes):
    inputs, samples = make_batch(shapes, [3, 2][: len(shapes)], NUM_CLASSES)
    with torch.no_grad():
        expected = theirs(**huggingface.batch(inputs, samples))
        logits, boxes, masks = ours(inputs, samples, mode='tensor')
        losses = ours(inputs, samples, mode='loss')
    assert expected.pred_masks.std(1).mean() > 1e-3, 'masks that do not depend on their query'
    torch.testing.assert_close(logits[-1], expected.logits, **TOLERANCE)
    torch.testing.assert_close(boxes[-1], expected.pred_boxes, **TOLERANCE)
    torch.testing.assert_close(masks, expected.pred_masks, **TOLERANCE)
    for name in ('loss_mask', 'loss_dice'):
        torch.testing.assert_close(losses[name], expected.loss_dict[name], **TOLERANCE)


def test_conversion_and_back(theirs):
    """Into the official names and those of the hub's files, every bit."""
    native = convert(theirs.state_dict(), source='huggingface', classes='keep')
    for target, prefix in dict(official='detr.transformer.', huggingface='detr.model.').items():
        converted = convert(native, target=target, classes='keep')
        assert any(name.startswith(prefix) for name in converted)
        assert {'bbox_attention.k_linear.bias', 'mask_head.lay5.weight', 'mask_head.gn1.bias'} <= set(converted)
        assert all(name.startswith(('detr.', 'bbox_attention.', 'mask_head.')) for name in converted)
        again = convert(converted, classes='keep')
        assert again.keys() == native.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in native.items())
