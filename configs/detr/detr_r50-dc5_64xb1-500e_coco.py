# DETR-DC5, one image a GPU: 43.3 AP (DETR paper, table 1). Evaluate it with one image a GPU, too.
_base_ = 'detr_r50_16xb4-500e_coco.py'
model = dict(backbone=dict(type='mmdet_ddetr.ResNetDC5'))
train_dataloader = dict(batch_size=1)
