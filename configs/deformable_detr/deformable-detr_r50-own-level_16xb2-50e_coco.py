# Multi-scale inputs, but each cell attends to its own level only: 42.3 AP (paper, table 2).
_base_ = 'deformable-detr_r50_16xb2-50e_coco.py'
model = dict(encoder=dict(layer_cfg=dict(self_attn_cfg=dict(type='mmdet_ddetr.OwnLevelDeformAttn'))))
