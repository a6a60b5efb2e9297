# Deformable DETR, R50, 50 epochs: 43.8 AP (paper, table 1).
_base_ = [
    '../_base_/datasets/coco_detr.py',
    '../_base_/schedules/detr_50e.py',
    '../_base_/detr_runtime.py',
    '../_base_/detr_tta.py',
]

model = dict(
    type='mmdet_ddetr.DeformableDETR',
    num_queries=300,
    num_feature_levels=4,
    with_box_refine=False,
    as_two_stage=False,
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
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[512, 1024, 2048],
        kernel_size=1,
        out_channels=256,
        bias=True,  # as in the official code; mmdet has none before a norm, so official weights would not fit
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=4,
    ),
    encoder=dict(
        type='mmdet_ddetr.DeformableEncoder',
        num_layers=6,
        layer_cfg=dict(
            type='mmdet_ddetr.DeformableEncoderLayer',
            self_attn_cfg=dict(
                type='mmdet_ddetr.MSDeformAttn',
                embed_dims=256,
                num_heads=8,
                num_points=4,
                dropout=0.1,
                batch_first=True,
            ),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=1024, ffn_drop=0.1),
        ),
    ),
    decoder=dict(
        type='mmdet_ddetr.DeformableDecoder',
        num_layers=6,
        return_intermediate=True,
        layer_cfg=dict(
            type='mmdet_ddetr.DeformableDecoderLayer',
            self_attn_cfg=dict(
                type='mmdet_ddetr.MultiheadAttention', embed_dims=256, num_heads=8, dropout=0.1, batch_first=True
            ),
            cross_attn_cfg=dict(
                type='mmdet_ddetr.MSDeformAttn',
                embed_dims=256,
                num_heads=8,
                num_points=4,
                dropout=0.1,
                batch_first=True,
            ),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=1024, ffn_drop=0.1),
        ),
    ),
    positional_encoding=dict(num_feats=128, normalize=True, offset=-0.5),
    bbox_head=dict(
        type='mmdet_ddetr.SetHead',
        num_classes=80,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='mmdet_ddetr.HungarianAssigner',
            match_costs=[
                dict(type='mmdet_ddetr.FocalLossCost', weight=2.0),
                dict(type='mmdet_ddetr.BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='mmdet_ddetr.IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=100),
)
