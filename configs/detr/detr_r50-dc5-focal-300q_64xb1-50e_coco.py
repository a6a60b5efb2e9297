# DETR-DC5+: focal loss and 300 queries. 36.2 AP (Deformable DETR paper, table 1).
_base_ = 'detr_r50-dc5_64xb1-50e_coco.py'
model = dict(
    num_queries=300,
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
