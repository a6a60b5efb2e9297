# DETR in the size of deformable-detr_lite0_shapes.py, for benchmarks/convergence.py; same data, backbone, schedule. It
# reads stride 16, as DETR-DC5 does, because the shapes are small. Loss and matching costs are DETR's own.
_base_ = 'deformable-detr_lite0_shapes.py'

embed_dims = 64
attn = dict(type='mmdet_ddetr.MultiheadAttention', embed_dims=embed_dims, num_heads=4, batch_first=True)
ffn = dict(embed_dims=embed_dims, feedforward_channels=256)
model = dict(
    _delete_=True,
    type='mmdet_ddetr.DETR',
    num_queries={{_base_.model.num_queries}},
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone=dict(
        type='mmdet_ddetr.EfficientNetLite',
        arch='lite0',
        out_indices=(3,),
        frozen_stages={{_base_.model.backbone.frozen_stages}},
        norm_eval=True,
        init_cfg={{_base_.model.backbone.init_cfg}},
    ),
    neck=dict(
        type='ChannelMapper', in_channels=[112], kernel_size=1, out_channels=embed_dims, act_cfg=None, num_outs=1
    ),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attn, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(self_attn_cfg=attn, cross_attn_cfg=attn, ffn_cfg=ffn),
    ),
    positional_encoding=dict(num_feats=embed_dims // 2, normalize=True),
    bbox_head=dict(
        type='mmdet_ddetr.SetHead',
        num_classes={{_base_.model.bbox_head.num_classes}},
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=1.0, bg_cls_weight=0.1, loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='mmdet_ddetr.HungarianAssigner',
            match_costs=[
                dict(type='mmdet_ddetr.ClassificationCost', weight=1.0),
                dict(type='mmdet_ddetr.BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='mmdet_ddetr.IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img={{_base_.model.test_cfg.max_per_img}}),
)

optim_wrapper = dict(optimizer=dict(lr=5e-4))
