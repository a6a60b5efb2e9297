# SAM-DETR with the Gaussians of SMCA, R50, 50 epochs: 41.8 AP (official log).
_base_ = 'sam-detr_r50_4xb4-50e_coco.py'
model = dict(decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(gaussian=True))))
