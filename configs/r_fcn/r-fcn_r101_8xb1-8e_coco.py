# R-FCN: 32.1 AP on test-dev (official code of DCN). All settings are those of its
# resnet_v1_101_coco_trainval_rfcn_end2end_ohem.yaml.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50-caffe-c4.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    '../_base_/datasets/coco_1x.py',
    '../_base_/detr_runtime.py',
]

weights = dict(checkpoint='open-mmlab://detectron2/resnet101_caffe')
model = dict(
    backbone=dict(depth=101, init_cfg=weights),
    rpn_head=dict(
        feat_channels=512,
        anchor_generator=dict(scales=[4, 8, 16, 32]),
        loss_bbox=dict(type='SmoothL1Loss', beta=1 / 9),
    ),
    roi_head=dict(
        type='mmdet_ddetr.RFCNRoIHead',
        shared_head=dict(depth=101, stride=1, dilation=2, init_cfg=weights),
        bbox_roi_extractor=None,
        bbox_head=dict(
            _delete_=True,
            type='mmdet_ddetr.RFCNHead',
            deformable=False,
            num_classes=80,
            loss_bbox=dict(type='SmoothL1Loss', beta=1.0),
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=6000, max_per_img=300),
        rcnn=dict(sampler=dict(type='OHEMSampler', num=128)),
    ),
    test_cfg=dict(rpn=dict(max_per_img=300), rcnn=dict(score_thr=0.001, nms=dict(iou_threshold=0.3))),
)

train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (1000, 600)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (1000, 600)
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# 5e-4 there, where the gradients of 8 GPUs are added up
optim_wrapper = dict(
    optimizer=dict(lr=0.004, weight_decay=0.0005),
    paramwise_cfg=dict(custom_keys={'bbox_head.conv.': dict(lr_mult=3.0)}),
)
train_cfg = dict(max_epochs=8)
param_scheduler = [
    dict(type='ConstantLR', factor=0.1, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, milestones=[78_181], gamma=0.1),  # 5 1/3 epochs
]
auto_scale_lr = dict(base_batch_size=8)
