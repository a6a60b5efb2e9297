# SMCA-DETR, multi-scale as in the paper, R101, 50 epochs: 44.4 AP (paper, table 1).
_base_ = 'smca-detr-ms_r50_8xb2-50e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
