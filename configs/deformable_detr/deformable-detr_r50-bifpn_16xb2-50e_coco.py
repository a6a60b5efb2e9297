# + BiFPN: 43.9 AP (paper, table 2). The paper does not say how many layers; three is EfficientDet-D0's number.
_base_ = 'deformable-detr_r50_16xb2-50e_coco.py'
model = dict(
    neck=dict(
        _delete_=True,
        type='mmdet_ddetr.BiFPN',
        in_channels=[512, 1024, 2048],
        out_channels=256,
        num_outs=4,
        num_layers=3,
        norm_cfg=dict(type='GN', num_groups=32),
    )
)
