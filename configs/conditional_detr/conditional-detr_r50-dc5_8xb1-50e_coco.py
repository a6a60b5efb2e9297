# Conditional DETR, DC5-R50, one image a GPU: 43.7 AP (official README). Evaluate it with one image a GPU, too.
_base_ = 'conditional-detr_r50_8xb2-50e_coco.py'
model = dict(backbone=dict(type='mmdet_ddetr.ResNetDC5'))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
