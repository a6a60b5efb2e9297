# Panoptic segmentation: the mask head on the frozen boxes of detr_r50_8xb2-300e_coco-panoptic, given as load_from.
# 43.4 PQ, 38.8 box AP, 31.1 mask AP (official README).
_base_ = 'detr_r50_8xb2-300e_coco-panoptic.py'
model = dict(
    type='mmdet_ddetr.DETRWithMasks',
    data_preprocessor=dict(pad_mask=True),
    backbone=dict(out_indices=(0, 1, 2, 3)),
    mask_head=dict(in_channels=[1024, 512, 256]),
    panoptic_fusion_head=dict(type='mmdet_ddetr.PanopticFusion', num_things_classes=80, num_stuff_classes=53),
    freeze_detector=True,
)

test_pipeline = [*_base_.test_pipeline[:2], dict(type='PackDetInputs')]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
data_root = _base_.data_root
val_evaluator = dict(
    _delete_=True,
    type='mmdet_ddetr.CocoPanopticMetric',
    ann_file=data_root + 'annotations/panoptic_val2017.json',
    seg_prefix=data_root + 'annotations/panoptic_val2017/',
)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=25, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=25, by_epoch=True, milestones=[15], gamma=0.1)]
