# Mask R-CNN, DAT-T, 36 epochs with DETR's augmentation: 47.1 box AP, 42.4 mask AP (DAT paper).
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detr.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/detr_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet_ddetr.DAT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='dat://tiny'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].with_mask = True
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, filter_cfg=dict(filter_empty_gt=True)))
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
