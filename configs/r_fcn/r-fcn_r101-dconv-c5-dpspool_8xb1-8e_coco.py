# R-FCN with deformable convolutions in stage 5 and deformable position-sensitive RoI pooling: 35.7 AP on test-dev
# (official code of DCN).
_base_ = 'r-fcn_r101_8xb1-8e_coco.py'
model = dict(
    roi_head=dict(
        shared_head=dict(dcn=dict(type='mmdet_ddetr.DCN', deform_groups=4)),
        bbox_head=dict(deformable=True),
    ),
)
