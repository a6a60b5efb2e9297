# `tools/finetune.py`: with what gains most on few data in little time (docs/beyond_the_paper.md).
_base_ = 'deformable-detr-refine-twostage_lite0_finetune.py'
model = dict(
    pure_selection=True,
    decoder=dict(look_forward_twice=True),
    dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(dynamic=True, num_dn_queries=100)),
    bbox_head=dict(dense_loss=dict(), relative_boxes=True),
    test_cfg=dict(matrix_nms=2.0),
)
# A small backbone and few steps: what a large one keeps of ImageNet is little beside what all parts can learn.
full_rate = dict(lr_mult=1.0)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(
        custom_keys=dict(backbone=full_rate, sampling_offsets=full_rate, reference_points=full_rate),
    ),
)
# All but the backbone has learnt from drawings (..._pretrain.py); classes are new.
load_from = 'drawings://lite0'
