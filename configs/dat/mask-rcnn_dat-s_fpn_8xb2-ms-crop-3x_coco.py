# Mask R-CNN, DAT-S, 36 epochs with DETR's augmentation: 49.0 box AP, 44.0 mask AP (DAT paper).
_base_ = 'mask-rcnn_dat-t_fpn_8xb2-ms-crop-3x_coco.py'
model = dict(backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='dat://small')))
