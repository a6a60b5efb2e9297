# DETR-DC5, 50 epochs, lr / 10 after 40: 35.3 AP (Deformable DETR paper, table 1).
_base_ = 'detr_r50-dc5_64xb1-500e_coco.py'
train_cfg = dict(max_epochs=50, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[40], gamma=0.1)]
