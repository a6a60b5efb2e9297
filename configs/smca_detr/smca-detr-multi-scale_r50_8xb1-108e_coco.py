# SMCA-DETR, multi-scale as in the paper, R50, 108 epochs: 45.6 AP (paper). When the rate drops there was not published.
_base_ = 'smca-detr-multi-scale_r50_8xb1-50e_coco.py'
train_cfg = dict(max_epochs=108)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=108, by_epoch=True, milestones=[80], gamma=0.1)]
