# ATSS, ResNeXt-101 with DCNv2: 50.7 AP on test-dev with test-time augmentation, `tools/test.py --tta` (Deformable DETR
# paper, table 3). The head is that of MMDetection's atss_r50_fpn_1x_coco.py.
_base_ = 'fcos_x101-64x4d_fpn_8xb2-ms-2x_coco.py'

model = dict(
    type='ATSS',
    backbone=dict(dcn=dict(type='mmdet_ddetr.DCNv2', deform_groups=1), stage_with_dcn=(False, False, True, True)),
    neck=dict(relu_before_extra_convs=False),
    bbox_head=dict(
        _delete_=True,
        type='ATSSHead',
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=dict(
        _delete_=True, assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False
    ),
)

optim_wrapper = dict(paramwise_cfg=None, clip_grad=None)

# Scales, and the sizes of boxes that each is trusted with, of the official code; the merging is this package's.
scales = (400, 500, 600, 640, 700, 900, 1000, 1100, 1200, 1300, 1400, 1800)
size_ranges = [(96, 10000)] * 2 + [(64, 10000)] * 3 + [(0, 10000)] * 2 + [(0, 256)] * 2 + [(0, 192)] * 2 + [(0, 96)]
tta_model = dict(type='mmdet_ddetr.DDetrTTAModel', iou_threshold=0.66, max_per_img=100, size_ranges=size_ranges)
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(3000, side), keep_ratio=True) for side in scales],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
