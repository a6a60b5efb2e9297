# SMCA-DETR, single scale, in the size of detr_lite0_shapes.py; same data, backbone, schedule.
_base_ = 'detr_lite0_shapes.py'

model = dict(
    type='mmdet_ddetr.SMCADETR',
    decoder=dict(
        type='mmdet_ddetr.SMCADecoder',
        layer_cfg=dict(
            cross_attn_cfg=dict(
                _delete_=True, type='mmdet_ddetr.SpatiallyModulatedAttention', embed_dims=64, num_heads=4
            )
        ),
    ),
    bbox_head=dict(loss_cls=dict(_delete_=True, type='FocalLoss', use_sigmoid=True, loss_weight=2.0)),
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
