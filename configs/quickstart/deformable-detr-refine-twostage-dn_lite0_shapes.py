# `make demo`: the shapes with what costs little and learns in fewer steps (docs/beyond_the_paper.md).
_base_ = 'deformable-detr-refine-twostage_lite0_shapes.py'
model = dict(
    pure_selection=True,
    decoder=dict(look_forward_twice=True),
    dn_cfg=dict(group_cfg=dict(dynamic=True, num_dn_queries=40)),
    bbox_head=dict(dense_loss=dict(), relative_boxes=True),
    test_cfg=dict(matrix_nms=2.0),
)
full_rate = dict(lr_mult=1.0)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(backbone=full_rate, sampling_offsets=full_rate, reference_points=full_rate),
    )
)

train_pipeline = [
    dict(type='mmdet_ddetr.LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='mmdet_ddetr.PasteBoxes'),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
