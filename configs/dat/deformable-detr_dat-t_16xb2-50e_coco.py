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
optim_wrapper = dict(
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={'backbone': dict(lr_mult=0.1), 'position_bias_table': dict(lr_mult=0.1, decay_mult=0.0)},
    )
)
