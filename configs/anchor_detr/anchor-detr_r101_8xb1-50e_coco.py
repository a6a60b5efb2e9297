# Anchor DETR, R101: 43.5 AP (official README).
_base_ = 'anchor-detr_r50_8xb1-50e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
