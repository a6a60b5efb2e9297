# Faster R-CNN, modulated deformable convolutions (DCNv2) in stages 3 to 5: 41.4 AP (MMDetection).
_base_ = 'faster-rcnn_r50-dconv-c3-c5_fpn_8xb2-1x_coco.py'
model = dict(backbone=dict(dcn=dict(type='mmdet_ddetr.DCNv2')))
