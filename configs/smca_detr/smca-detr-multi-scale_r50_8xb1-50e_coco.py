# SMCA-DETR, multi-scale as in the paper, R50, one image a GPU, 50 epochs: 43.7 AP (official README).
_base_ = 'smca-detr_r50_8xb2-50e_coco.py'

ffn = dict(feedforward_channels=1024)
model = dict(
    own_maps=True,
    num_feature_levels=3,  # strides 16, 32, 64
    backbone=dict(out_indices=(2, 3)),
    neck=dict(in_channels=[1024, 2048], num_outs=3),
    encoder=dict(
        type='mmdet_ddetr.SMCAEncoder',
        num_layers=5,  # within the levels; the third between them
        layer_cfg=dict(
            type='mmdet_ddetr.SMCAEncoderLayer',
            self_attn_cfg=dict(type='mmdet_ddetr.OwnLevelAttention'),
            ffn_cfg=ffn,
        ),
    ),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(smooth=[16.0, 8.0, 4.0]), ffn_cfg=ffn)),
)

train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
