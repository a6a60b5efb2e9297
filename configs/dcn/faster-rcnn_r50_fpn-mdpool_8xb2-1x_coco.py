# Faster R-CNN, modulated deformable RoI pooling (DCNv2): 38.7 AP (MMDetection).
_base_ = 'faster-rcnn_r50_fpn-dpool_8xb2-1x_coco.py'
model = dict(roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(type='mmdet_ddetr.ModulatedDeformRoIPoolPack'))))
