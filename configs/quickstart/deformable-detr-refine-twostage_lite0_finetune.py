# A small Deformable DETR that learns a user's own data on a CPU: ImageNet EfficientNet-Lite0 (from pip), 64 channels,
# 2 encoder and 3 decoder layers, box refinement, two-stage. `tools/finetune.py --data DIR` sets data, classes and the
# schedule's length.
_base_ = [
    '../_base_/datasets/coco_detr.py',
    '../_base_/schedules/detr_50e.py',
    '../_base_/detr_runtime.py',
]

embed_dims = 64
self_attn = dict(type='mmdet_ddetr.MultiheadAttention', embed_dims=embed_dims, num_heads=4, batch_first=True)
deform_attn = dict(type='mmdet_ddetr.MSDeformAttn', embed_dims=embed_dims, num_heads=4, dropout=0.0, batch_first=True)
ffn = dict(embed_dims=embed_dims, feedforward_channels=256)
model = dict(
    type='mmdet_ddetr.DeformableDETR',
    num_queries=100,
    with_box_refine=True,
    as_two_stage=True,  # learns in far fewer steps than learned queries
    own_maps=True,  # an image of a padded batch gets what it gets alone (docs/performance.md)
    # Multiples of 32: at odd sizes TensorFlow's "SAME" padding, which the backbone has, moves its maps by a pixel, so
    # that the same image would give others alone than in a larger batch.
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(
        type='mmdet_ddetr.EfficientNetLite',
        arch='lite0',
        out_indices=(2, 3, 4),
        frozen_stages=2,  # up to stride 4: edges and colours serve as they are, and half of the backward pass is saved
        norm_eval=True,
        train_dtype='auto',  # bf16 where the processor multiplies it: half the time, the same figures
        init_cfg=dict(type='Pretrained', checkpoint='efficientnet-lite://lite0'),
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[40, 112, 320],
        kernel_size=1,
        out_channels=embed_dims,
        bias=True,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=16),
        num_outs=4,
    ),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=deform_attn, ffn_cfg=ffn)),
    decoder=dict(num_layers=3, layer_cfg=dict(self_attn_cfg=self_attn, cross_attn_cfg=deform_attn, ffn_cfg=ffn)),
    positional_encoding=dict(num_feats=embed_dims // 2, normalize=True, offset=-0.5),
    bbox_head=dict(type='mmdet_ddetr.SetHead', num_classes=80),
    test_cfg=dict(max_per_img=100),
)

scale = (384, 288)
train_pipeline = [
    dict(type='mmdet_ddetr.LoadImageOnce', scale=(2 * scale[0], 2 * scale[1])),  # crops of half an image are enlarged
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmdet_ddetr.PasteBoxes'),  # few images hold few objects (docs/beyond_the_paper.md)
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True)],
            [
                dict(type='RandomCrop', crop_type='relative_range', crop_size=(0.5, 0.5), allow_negative_crop=True),
                dict(type='Resize', scale=scale, keep_ratio=True),
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
auto_scale_lr = dict(base_batch_size=4, rule='sqrt')  # as tools/finetune.py does

max_epochs = 30
train_cfg = dict(max_epochs=max_epochs, val_interval=3)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True
    ),
]
