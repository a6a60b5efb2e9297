# Conditional DETR in the size of detr_lite0_shapes.py, for benchmarks/convergence.py.
_base_ = 'detr_lite0_shapes.py'

attn = dict(_delete_=True, type='mmdet_ddetr.ConditionalAttention', embed_dims=64, num_heads=4)
model = dict(
    type='mmdet_ddetr.ConditionalDETR',
    decoder=dict(layer_cfg=dict(self_attn_cfg=attn, cross_attn_cfg=attn)),
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

optim_wrapper = dict(optimizer=dict(lr=1e-3))
