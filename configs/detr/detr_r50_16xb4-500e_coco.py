# DETR, R50, 500 epochs: 42.0 AP (DETR paper, table 1).
_base_ = [
    '../_base_/datasets/coco_detr.py',
    '../_base_/schedules/detr_500e.py',
    '../_base_/detr_runtime.py',
]

attn = dict(type='mmdet_ddetr.MultiheadAttention', embed_dims=256, num_heads=8, dropout=0.1, batch_first=True)
ffn = dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.1)
model = dict(
    type='mmdet_ddetr.DETR',
    num_queries=100,
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=dict(type='ChannelMapper', in_channels=[2048], kernel_size=1, out_channels=256, act_cfg=None, num_outs=1),
    encoder=dict(
        type='mmdet_ddetr.DetrEncoder',
        num_layers=6,
        layer_cfg=dict(type='mmdet_ddetr.DetrEncoderLayer', self_attn_cfg=attn, ffn_cfg=ffn),
    ),
    decoder=dict(
        type='mmdet_ddetr.DetrDecoder',
        num_layers=6,
        return_intermediate=True,
        layer_cfg=dict(type='mmdet_ddetr.DetrDecoderLayer', self_attn_cfg=attn, cross_attn_cfg=attn, ffn_cfg=ffn),
    ),
    positional_encoding=dict(num_feats=128, normalize=True),
    bbox_head=dict(
        type='mmdet_ddetr.SetHead',
        num_classes=80,
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=1.0, bg_cls_weight=0.1, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
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
    test_cfg=dict(max_per_img=100),
)

train_dataloader = dict(batch_size=4)
