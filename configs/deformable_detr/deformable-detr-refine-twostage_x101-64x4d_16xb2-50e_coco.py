# ResNeXt-101: 49.0 AP on test-dev (paper, table 3, which does not say which ResNeXt-101). This is MMDetection's.
_base_ = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
model = dict(
    backbone=dict(
        type='ResNeXt',
        depth=101,
        groups=64,
        base_width=4,
        init_cfg=dict(checkpoint='open-mmlab://resnext101_64x4d'),
    )
)
