# What `tools/finetune.py` starts from (docs/beyond_the_paper.md): all but the backbone, trained on drawings, which have
# objects of many sizes in any number. The backbone keeps its ImageNet weights, so that both fit together.
_base_ = 'deformable-detr-refine-twostage-dn_lite0_shapes.py'
model = dict(backbone=dict(frozen_stages=5))

# For each side in px: python tools/make_shapes.py data/pretrain/128 --size 128 --seed 7
train_pipeline = [
    dict(type='mmdet_ddetr.LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
drawings = dict(
    type='mmdet_ddetr.CocoDataset',
    ann_file='annotations/train.json',
    data_prefix=dict(img='images/train/'),
    metainfo=dict(classes={{_base_.classes}}),
    filter_cfg=dict(filter_empty_gt=False, min_size=0),
    pipeline=train_pipeline,
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(drawings, data_root='data/pretrain/128/'),
            dict(drawings, data_root='data/pretrain/192/'),
            dict(drawings, data_root='data/pretrain/256/'),
        ],
    )
)
data_root = 'data/pretrain/192/'
val_file = 'annotations/val.json'
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = dict(ann_file=data_root + val_file)
test_evaluator = val_evaluator
