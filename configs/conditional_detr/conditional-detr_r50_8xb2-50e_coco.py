# Conditional DETR, R50, 50 epochs: 41.0 AP (official README).
_base_ = '../detr/detr_r50_8xb2-150e_coco.py'

attn = dict(
    _delete_=True,
    type='mmdet_ddetr.ConditionalAttention',
    embed_dims=256,
    num_heads=8,
    attn_drop=0.1,
    proj_drop=0.1,  # of the residual, as in the official code; mmdet has none
)
model = dict(
    type='mmdet_ddetr.ConditionalDETR',
    num_queries=300,
    decoder=dict(
        type='mmdet_ddetr.ConditionalDecoder',
        layer_cfg=dict(type='mmdet_ddetr.ConditionalDecoderLayer', self_attn_cfg=attn, cross_attn_cfg=attn),
    ),
    bbox_head=dict(
        loss_cls=dict(_delete_=True, type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0)
    ),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='mmdet_ddetr.FocalLossCost', weight=2.0),
                dict(type='mmdet_ddetr.BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='mmdet_ddetr.IoUCost', iou_mode='giou', weight=2.0),
            ]
        )
    ),
)

train_cfg = dict(max_epochs=50, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[40], gamma=0.1)]
