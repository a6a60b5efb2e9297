# COCO 2017 at one size, 800 x 1333, with horizontal flips: the augmentation of MMDetection's 1x schedules.
_base_ = 'coco_detr.py'

train_pipeline = [
    dict(type='mmdet_ddetr.LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, filter_cfg=dict(filter_empty_gt=True)))
