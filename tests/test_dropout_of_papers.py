"""The dropout of every relative's config is that of its official code: of weights, of residuals and in the FFN."""

import pytest
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.layers import DotProductAttention
from mmdet_ddetr.testing import shrink

DENSE, SAMPLED, NONE = (0.1, 0.1), (0.0, 0.1), (0.0, 0.0)  # of the weights, of what the residual adds
# (encoder's self-attention, decoder's self- and cross-attention, FFN), from each code's transformer and main.py
OFFICIAL = {
    'detr_r50_16xb4-500e_coco': (DENSE, DENSE, DENSE, 0.1),
    'deformable-detr_r50_16xb2-50e_coco': (SAMPLED, DENSE, SAMPLED, 0.1),
    'conditional-detr_r50_8xb2-50e_coco': (DENSE, DENSE, DENSE, 0.1),
    'dab-detr_r50_8xb2-50e_coco': (NONE, NONE, NONE, 0.0),
    'dab-deformable-detr_r50_8xb2-50e_coco': (NONE, NONE, NONE, 0.0),
    'dn-dab-detr_r50_8xb2-50e_coco': (NONE, NONE, NONE, 0.0),
    'dn-dab-deformable-detr_r50_8xb2-50e_coco': (NONE, NONE, NONE, 0.0),
    'anchor-detr_r50_8xb1-50e_coco': (NONE, NONE, NONE, 0.0),
    'smca-detr_r50_8xb2-50e_coco': (DENSE, DENSE, DENSE, 0.1),
    'smca-detr-multi-scale_r50_8xb1-50e_coco': (DENSE, DENSE, DENSE, 0.1),
    'smca-detr-multi-scale-conv_r50_8xb1-50e_coco': (SAMPLED, DENSE, DENSE, 0.1),
    'sam-detr_r50_4xb4-12e_coco': (DENSE, DENSE, DENSE, 0.1),
    'sam-detr-multi-scale_r50_8xb2-12e_coco': (SAMPLED, DENSE, DENSE, 0.1),
}


def of_attention(attention):
    parts = list(attention.children())
    products = [part.dropout.p for part in parts if isinstance(part, DotProductAttention)]
    products = products or [part.dropout for part in parts if isinstance(part, nn.MultiheadAttention)]
    rates = [part.p for part in parts if isinstance(part, nn.Dropout) and part.p]
    assert len(rates) <= 1, 'one after the other would be another rate'
    return (products or [0.0])[0], (rates or [0.0])[0]


@pytest.mark.parametrize('name', OFFICIAL)
def test_dropout(name):
    init_default_scope('mmdet')
    cfg = shrink(get_config(name).model)
    cfg.encoder.num_layers = cfg.decoder.num_layers = 1
    model = MODELS.build(cfg)
    (encoder,), (decoder,) = model.encoder.layers, model.decoder.layers
    *attentions, ffn = OFFICIAL[name]
    found = [of_attention(x) for x in (encoder.self_attn, decoder.self_attn, decoder.cross_attn)]
    assert found == attentions
    for layer in (encoder, decoder):
        assert [part.p for part in layer.ffn.modules() if isinstance(part, nn.Dropout)] == [ffn, ffn]
