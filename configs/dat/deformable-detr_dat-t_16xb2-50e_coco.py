# Deformable DETR on DAT-T, which nobody has published.
_base_ = '../deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet_ddetr.DAT',
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='dat://tiny'),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
