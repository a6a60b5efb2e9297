# Faster R-CNN, deformable convolutions in stages 3 to 5: 41.3 AP (MMDetection).
_base_ = '../faster_rcnn/faster-rcnn_r50_fpn_8xb2-1x_coco.py'
model = dict(backbone=dict(dcn=dict(type='mmdet_ddetr.DCN', deform_groups=1), stage_with_dcn=(False, True, True, True)))
