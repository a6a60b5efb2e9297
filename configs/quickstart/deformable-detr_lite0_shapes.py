# The plain Deformable DETR of benchmarks/convergence.py: learned queries, no refinement. The rate is constant until it
# drops once, as in the paper, so that the epochs before the drop compare.
_base_ = 'deformable-detr-refine-twostage_lite0_shapes.py'

model = dict(
    with_box_refine=False,
    as_two_stage=False,
    backbone=dict(frozen_stages=4),  # half of a step's time; the stage that DETR reads is trained
)

optim_wrapper = dict(optimizer=dict(lr=1e-3))
max_epochs = 18
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[15], gamma=0.1),
]
