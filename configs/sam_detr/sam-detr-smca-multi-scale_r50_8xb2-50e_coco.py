# SAM-DETR with the Gaussians of SMCA on three levels, R50, 50 epochs: 47.1 AP (official log).
_base_ = 'sam-detr-multi-scale_r50_8xb2-50e_coco.py'
model = dict(decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(gaussian=True))))
