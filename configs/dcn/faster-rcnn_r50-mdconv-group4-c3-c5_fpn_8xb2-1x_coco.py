# As mdconv-c3-c5, with offsets and factors for four groups of channels: 41.5 AP (MMDetection).
_base_ = 'faster-rcnn_r50-mdconv-c3-c5_fpn_8xb2-1x_coco.py'
model = dict(backbone=dict(dcn=dict(deform_groups=4)))
