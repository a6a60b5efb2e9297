# SMCA-DETR, multi-scale as in the released archive, R50, 50 epochs: 44.4 AP (its log).
_base_ = 'smca-detr-multi-scale_r50_8xb1-50e_coco.py'
model = dict(
    num_feature_levels=4,  # strides 8, 16, 32, 64, the first of them halved for the decoder
    own_maps=True,  # else the convolutions see the padding of a batch; the archive trained with one image a GPU
    backbone=dict(out_indices=(1, 2, 3)),
    neck=dict(in_channels=[512, 1024, 2048], num_outs=4),
    encoder=dict(
        type='mmdet_ddetr.ConvEncoder',
        num_layers=6,
        layer_cfg=dict(
            type='mmdet_ddetr.ConvEncoderLayer',
            self_attn_cfg=dict(
                _delete_=True, type='mmdet_ddetr.ConvExchange', embed_dims=256, shared=True, proj_drop=0.1
            ),
        ),
    ),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(smooth=[16.0, 16.0, 8.0, 4.0]))),
)
