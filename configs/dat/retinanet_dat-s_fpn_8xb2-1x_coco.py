# RetinaNet, DAT-S, 12 epochs: 45.7 AP (DAT paper).
_base_ = 'retinanet_dat-t_fpn_8xb2-1x_coco.py'
model = dict(backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='dat://small')))
