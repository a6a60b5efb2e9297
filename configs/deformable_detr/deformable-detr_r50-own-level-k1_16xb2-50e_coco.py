# Multi-scale inputs, each cell attends to its own level only, one point: 41.4 AP (paper, table 2).
_base_ = 'deformable-detr_r50-k1_16xb2-50e_coco.py'
model = dict(encoder=dict(layer_cfg=dict(self_attn_cfg=dict(type='mmdet_ddetr.OwnLevelDeformAttn'))))
