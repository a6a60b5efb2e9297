# Anchor DETR, DC5-R101: 45.1 AP (official README).
_base_ = 'anchor-detr_r50-dc5_8xb1-50e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
