# DETR-R101: 43.5 AP (DETR paper, table 1).
_base_ = 'detr_r50_16xb4-500e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
