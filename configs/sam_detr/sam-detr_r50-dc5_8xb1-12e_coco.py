# SAM-DETR, DC5-R50, 12 epochs: 38.3 AP (official log). One image a GPU, in evaluation, too.
_base_ = 'sam-detr_r50_4xb4-12e_coco.py'
model = dict(backbone=dict(type='mmdet_ddetr.ResNetDC5'))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
