# DAB-DETR, R101: 43.5 AP (paper).
_base_ = 'dab-detr_r50_8xb2-50e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
