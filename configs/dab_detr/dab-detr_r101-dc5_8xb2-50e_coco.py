# DAB-DETR, DC5-R101: 45.7 AP (official weights, measured by detrex).
_base_ = 'dab-detr_r50-dc5_8xb2-50e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
