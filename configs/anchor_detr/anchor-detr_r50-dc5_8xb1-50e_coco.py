# Anchor DETR, DC5-R50: 44.3 AP (official README).
_base_ = 'anchor-detr_r50_8xb1-50e_coco.py'
model = dict(backbone=dict(type='mmdet_ddetr.ResNetDC5'))
