# Instance segmentation: a mask head on a trained DETR (load_from), which is frozen (DETR, section 4.4).
_base_ = 'detr_r50_16xb4-500e_coco.py'
model = dict(
    type='mmdet_ddetr.DETRWithMasks',
    data_preprocessor=dict(pad_mask=True),
    backbone=dict(out_indices=(0, 1, 2, 3)),
    mask_head=dict(in_channels=[1024, 512, 256]),
    freeze_detector=True,
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].with_mask = True
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=25, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=25, by_epoch=True, milestones=[15], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=16)
