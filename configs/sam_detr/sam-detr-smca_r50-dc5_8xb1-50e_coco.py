# SAM-DETR with the Gaussians of SMCA, DC5-R50, 50 epochs: 45.0 AP (official log). One image a GPU, in evaluation, too.
_base_ = 'sam-detr-smca_r50_4xb4-50e_coco.py'
model = dict(backbone=dict(type='mmdet_ddetr.ResNetDC5'))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
