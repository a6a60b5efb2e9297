# ResNeXt-101: 49.0 AP on test-dev (paper, table 3, which does not say which ResNeXt-101). This is torchvision's.
_base_ = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
model = dict(
    backbone=dict(
        type='ResNeXt',
        depth=101,
        groups=32,
        base_width=8,
        init_cfg=dict(checkpoint='torchvision://resnext101_32x8d'),
    )
)
