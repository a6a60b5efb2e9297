# SAM-DETR with the Gaussians of SMCA on three levels, R50, 12 epochs: 42.8 AP (official log).
_base_ = 'sam-detr-multi-scale_r50_8xb2-12e_coco.py'
model = dict(decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(gaussian=True))))
