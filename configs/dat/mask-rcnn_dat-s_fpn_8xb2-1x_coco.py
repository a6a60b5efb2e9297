# Mask R-CNN, DAT-S, 12 epochs: 47.1 box AP, 42.5 mask AP (DAT paper).
_base_ = 'mask-rcnn_dat-t_fpn_8xb2-1x_coco.py'
model = dict(backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='dat://small')))
