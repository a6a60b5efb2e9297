# SMCA-DETR, single scale, R50, 108 epochs: 42.7 AP (official README). When the rate drops there was not published.
_base_ = 'smca-detr_r50_8xb2-50e_coco.py'
train_cfg = dict(max_epochs=108)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=108, by_epoch=True, milestones=[80], gamma=0.1)]
