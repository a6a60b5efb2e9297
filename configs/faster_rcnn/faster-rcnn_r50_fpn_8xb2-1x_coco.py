# Faster R-CNN + FPN, MMDetection's 1x schedule: 37.4 AP (MMDetection).
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    '../_base_/datasets/coco_1x.py',
    '../_base_/detr_runtime.py',
]
