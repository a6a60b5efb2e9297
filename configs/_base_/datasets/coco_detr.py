# COCO 2017 with the augmentation that every DETR-like model is trained with (facebookresearch/detr, datasets/coco.py).
_base_ = 'mmdet::_base_/datasets/coco_detection.py'

scales = [
    (480, 1333),
    (512, 1333),
    (544, 1333),
    (576, 1333),
    (608, 1333),
    (640, 1333),
    (672, 1333),
    (704, 1333),
    (736, 1333),
    (768, 1333),
    (800, 1333),
]
resize = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)

train_pipeline = [
    dict(type='mmdet_ddetr.LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [resize],
            [
                # no cap on the long side: 4200 is above what any COCO image reaches
                dict(type='RandomChoiceResize', scales=[(400, 4200), (500, 4200), (600, 4200)], keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                resize,
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
# Labels follow the classes of the config by name, where mmdet's types number them in the order of the file.
# Images without boxes, and those below 32 px, stay in: the official code trains on them, mmdet drops them by default.
train_dataloader = dict(
    dataset=dict(
        type='mmdet_ddetr.CocoDataset',
        pipeline=train_pipeline,
        filter_cfg=dict(filter_empty_gt=False, min_size=0),
    )
)
val_dataloader = dict(dataset=dict(type='mmdet_ddetr.CocoDataset'))
test_dataloader = val_dataloader
val_evaluator = dict(type='mmdet_ddetr.CocoMetric')
test_evaluator = val_evaluator
