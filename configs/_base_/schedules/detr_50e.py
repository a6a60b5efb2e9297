# AdamW for 50 epochs, lr / 10 after 40 (Deformable DETR, section 5).
max_epochs = 50
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[40], gamma=0.1),
]

optim_wrapper = dict(
    type='OptimWrapper',
    # fused: paramwise_cfg makes a group of each parameter; one after the other, hundreds cost 15 ms a step on a CPU
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4, fused=True),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'sampling_offsets': dict(lr_mult=0.1),
            'reference_points': dict(lr_mult=0.1),
        }
    ),
)

# The lr above belongs to 16 GPUs x 2 images; for other numbers it is scaled (rule='sqrt': with their root).
auto_scale_lr = dict(enable=True, base_batch_size=32)
