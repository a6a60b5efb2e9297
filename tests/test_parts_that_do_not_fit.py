"""Configs whose parts do not fit together are refused when the model is built, in one sentence."""

import pytest
from mmdet.registry import MODELS
from tiny_model import tiny_config


@pytest.mark.parametrize(
    ('variant', 'changes', 'message'),
    [
        ('conditional', dict(num_queries=0), 'num_queries must be at least 1, got 0'),
        ('detr', dict(decoder=dict(num_layers=0)), 'num_layers must be at least 1, got 0'),
        (
            'dab',
            dict(decoder=dict(type='mmdet_ddetr.ConditionalDecoder')),
            'decoder.type must be DABDecoder, or a class derived from it, in DABDETR, got ConditionalDecoder',
        ),
        (
            'conditional',
            dict(decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(embed_dims=8)))),
            "cross_attn_cfg.embed_dims must be the self-attention's, 16, got 8",
        ),
        ('detr', dict(bbox_head=dict(embed_dims=8)), "embed_dims of the bbox_head must be the encoder's, 16, got 8"),
        (
            'detr',
            dict(positional_encoding=dict(num_feats=4)),
            'positional_encoding.num_feats must be half of embed_dims=16, got 4',
        ),
        (
            'conditional',
            dict(dn_cfg=dict(indicator=True)),
            'dn_cfg must be None: the queries of ConditionalDETR do not start from boxes',
        ),
        (
            'conditional',
            dict(decoder=dict(look_forward_twice=True)),
            'decoder.look_forward_twice must be False: ConditionalDETR refines no boxes',
        ),
    ],
)
def test_refused(variant, changes, message):
    config = tiny_config(variant)
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)
