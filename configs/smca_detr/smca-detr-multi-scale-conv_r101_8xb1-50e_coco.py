# SMCA-DETR, multi-scale as in the released archive, R101, 50 epochs: 45.7 AP (its log), with a convolution for
# each pair of levels.
_base_ = 'smca-detr-multi-scale-conv_r50_8xb1-50e_coco.py'
model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(shared=False))),
)
