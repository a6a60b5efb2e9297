# The plain Deformable DETR of benchmarks/convergence.py: learned queries, no refinement. The backbone is frozen and
# ends at stride 16, which DETR reads. The rate is constant until it drops once, as in the paper, so that the epochs
# before the drop compare. For shapes drawn with `--size 128`, on which DETR leaves zero within minutes.
_base_ = 'deformable-detr-refine-twostage_lite0_shapes.py'

model = dict(
    num_queries=30,
    with_box_refine=False,
    as_two_stage=False,
    backbone=dict(out_indices=(2, 3), frozen_stages=4),
    neck=dict(in_channels=[40, 112]),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-3))
max_epochs = 60
train_cfg = dict(max_epochs=max_epochs, val_interval=3)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[50], gamma=0.1),
]
