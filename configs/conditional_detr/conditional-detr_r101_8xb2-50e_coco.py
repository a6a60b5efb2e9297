# Conditional DETR, R101: 42.8 AP (official README).
_base_ = 'conditional-detr_r50_8xb2-50e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
