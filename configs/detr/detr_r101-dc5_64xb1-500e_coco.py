# DETR-DC5-R101: 44.9 AP (DETR paper, table 1).
_base_ = 'detr_r50-dc5_64xb1-500e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
