# 12 epochs of AdamW, with which transformer backbones are trained in RetinaNet and Mask R-CNN (Swin Transformer, DAT).
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'position_bias_table': dict(decay_mult=0.0)}),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
