# R101: 48.7 AP on test-dev (paper, table 3).
_base_ = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
