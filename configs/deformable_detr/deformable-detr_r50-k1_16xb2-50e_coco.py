# One sampling point per head and level instead of four.
_base_ = 'deformable-detr_r50_16xb2-50e_coco.py'
model = dict(
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_points=1))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_points=1))),
)
