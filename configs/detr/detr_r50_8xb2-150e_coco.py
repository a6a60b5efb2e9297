# DETR, R50, 150 epochs on one machine, lr / 10 after 100: 39.5 AP (official code).
_base_ = 'detr_r50_16xb4-500e_coco.py'
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_epochs=150, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=150, by_epoch=True, milestones=[100], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=16)
