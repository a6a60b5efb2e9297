# SAM-DETR, R50, 12 epochs: 33.1 AP (official log).
_base_ = '../conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'

model = dict(
    type='mmdet_ddetr.SAMDETR',
    own_maps=True,
    num_feature_levels=1,
    # The authors had a norm here "by accident" in their trainings of 12 epochs, and recommend to do without.
    neck=dict(bias=True, norm_cfg=dict(type='GN', num_groups=32)),
    decoder=dict(
        type='mmdet_ddetr.SAMDecoder',
        layer_cfg=dict(
            type='mmdet_ddetr.SAMDecoderLayer',
            cross_attn_cfg=dict(type='mmdet_ddetr.SemanticAlignedAttention'),
        ),
    ),
    positional_encoding=dict(offset=-0.5),
)

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=12)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[10], gamma=0.1)]
