# Boxes of things and stuff, the first step to panoptic segmentation: a DETR of 133 classes (DETR, section 4.4).
_base_ = 'detr_r50_16xb4-500e_coco.py'
model = dict(bbox_head=dict(num_classes=133))

load_instances = dict(type='mmdet_ddetr.LoadPanopticInstances', num_things=80)
train_pipeline = _base_.train_pipeline
train_pipeline[1] = load_instances
test_pipeline = [
    *_base_.test_pipeline[:2],
    load_instances,
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
dataset_type = 'mmdet_ddetr.CocoPanopticDataset'
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        type=dataset_type,
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(img='val2017/', seg='annotations/panoptic_val2017/'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
# Box AP over the classes of things and stuff; the ground truth is what the pipeline loads.
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=300)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=300, by_epoch=True, milestones=[200], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=16)
