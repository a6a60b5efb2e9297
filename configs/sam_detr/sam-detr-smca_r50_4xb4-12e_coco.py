# SAM-DETR with the Gaussians of SMCA, R50, 12 epochs: 36.0 AP (official log).
_base_ = 'sam-detr_r50_4xb4-12e_coco.py'
model = dict(decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(gaussian=True))))
