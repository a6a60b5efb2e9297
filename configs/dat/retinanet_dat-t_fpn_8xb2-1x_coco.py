# RetinaNet, DAT-T, 12 epochs: 42.8 AP (DAT paper).
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/coco_1x.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/detr_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet_ddetr.DAT',
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='dat://tiny'),
    ),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
