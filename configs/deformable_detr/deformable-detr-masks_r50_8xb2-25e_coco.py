# Instance segmentation as in detr-masks_r50_8xb2-25e_coco.py, on a Deformable DETR.
_base_ = 'deformable-detr_r50_16xb2-50e_coco.py'
model = dict(
    type='mmdet_ddetr.DeformableDETRWithMasks',
    data_preprocessor=dict(pad_mask=True),
    backbone=dict(out_indices=(0, 1, 2, 3)),
    mask_head=dict(in_channels=[1024, 512, 256]),
    freeze_detector=True,
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].with_mask = True
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1e-4))
train_cfg = dict(max_epochs=25)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=25, by_epoch=True, milestones=[15], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=16)
