# SAM-DETR, R50, 50 epochs: 39.8 AP (official log).
_base_ = 'sam-detr_r50_4xb4-12e_coco.py'
model = dict(neck=dict(norm_cfg=None))
train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[40], gamma=0.1)]
