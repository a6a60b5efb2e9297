# SAM-DETR on three levels, R50, 12 epochs: 41.1 AP (official log). The encoder is Deformable DETR's.
_base_ = 'sam-detr_r50_4xb4-12e_coco.py'

attn = dict(_delete_=True, type='mmdet_ddetr.MSDeformAttn', embed_dims=256, num_heads=8, num_points=4, dropout=0.1)
model = dict(
    num_feature_levels=3,
    backbone=dict(out_indices=(1, 2, 3)),
    neck=dict(in_channels=[512, 1024, 2048], num_outs=3),
    encoder=dict(
        type='mmdet_ddetr.DeformableEncoder',
        layer_cfg=dict(
            type='mmdet_ddetr.DeformableEncoderLayer',
            self_attn_cfg=dict(**attn, batch_first=True),
            ffn_cfg=dict(feedforward_channels=1024),
        ),
    ),
)

train_dataloader = dict(batch_size=2)
