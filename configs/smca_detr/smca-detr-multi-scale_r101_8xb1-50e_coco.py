# SMCA-DETR, multi-scale as in the paper, R101, 50 epochs: 44.4 AP (its author, in an issue of the official code).
_base_ = 'smca-detr-multi-scale_r50_8xb1-50e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
