# SAM-DETR on three levels, R50, 50 epochs: 46.1 AP (official log).
_base_ = 'sam-detr-multi-scale_r50_8xb2-12e_coco.py'
train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[40], gamma=0.1)]
