# mmdet's runtime; keeps the best and the last checkpoints instead of one for every epoch.
_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='coco/bbox_mAP', rule='greater'),
    visualization=dict(type='DetVisualizationHook', draw=False),  # tools/test.py --show-dir switches it on
)
