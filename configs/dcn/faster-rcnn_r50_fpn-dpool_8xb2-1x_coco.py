# Faster R-CNN, deformable RoI pooling: 38.9 AP (MMDetection).
_base_ = '../faster_rcnn/faster-rcnn_r50_fpn_8xb2-1x_coco.py'
roi_layer = dict(_delete_=True, type='mmdet_ddetr.DeformRoIPoolPack', output_size=7, output_channels=256)
model = dict(
    roi_head=dict(bbox_roi_extractor=dict(type='mmdet_ddetr.SingleRoIExtractor', roi_layer=roi_layer)),
)
