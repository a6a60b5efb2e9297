# DETR-R101, 150 epochs on one machine; nobody has published its AP.
_base_ = 'detr_r50_8xb2-150e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
