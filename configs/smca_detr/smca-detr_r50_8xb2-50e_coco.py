# SMCA-DETR, single scale, R50, 50 epochs: 41.0 AP (official README).
_base_ = '../conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'

attn = dict(
    _delete_=True,
    type='mmdet_ddetr.MultiheadAttention',
    embed_dims=256,
    num_heads=8,
    dropout=0.1,
    batch_first=True,
)
model = dict(
    type='mmdet_ddetr.SMCADETR',
    decoder=dict(
        type='mmdet_ddetr.SMCADecoder',
        layer_cfg=dict(
            type='mmdet_ddetr.SMCADecoderLayer',
            self_attn_cfg=attn,
            cross_attn_cfg=dict(
                _delete_=True,
                type='mmdet_ddetr.SpatiallyModulatedAttention',
                embed_dims=256,
                num_heads=8,
                dropout=0.1,
                scale_type='type3',
                smooth=8.0,
            ),
        ),
    ),
    test_cfg=dict(max_per_img=300),
)
