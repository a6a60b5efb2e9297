# Single scale, C5 dilated to stride 16: 41.5 AP (official code).
_base_ = 'deformable-detr_r50-single-scale_16xb2-50e_coco.py'
model = dict(backbone=dict(type='mmdet_ddetr.ResNetDC5'))
