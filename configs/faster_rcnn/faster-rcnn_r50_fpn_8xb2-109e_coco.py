# Faster R-CNN + FPN as DETR's baseline: GIoU loss, random crops, 9x schedule. 42.0 AP (DETR paper, table 1).
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    '../_base_/datasets/coco_detr.py',
    '../_base_/detr_runtime.py',
]

model = dict(
    roi_head=dict(bbox_head=dict(reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss', loss_weight=10.0))),
)
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=True)))
# Detectron2's 9x schedule, 810k iterations of 16 images, drops the lr 60k and 20k iterations before the end.
train_cfg = dict(max_epochs=109)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=109, by_epoch=True, milestones=[101, 106], gamma=0.1),
]
