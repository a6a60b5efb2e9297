# ResNeXt-101 + DCNv2: 50.1 AP on test-dev, 52.3 with test-time augmentation (paper, table 3).
_base_ = 'deformable-detr-refine-twostage_x101-64x4d_16xb2-50e_coco.py'
model = dict(
    backbone=dict(dcn=dict(type='mmdet_ddetr.DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True))
)
