# DAB-Deformable-DETR, R50, 50 epochs: 48.7 AP (official README).
_base_ = '../deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

attn = dict(dropout=0.0)
ffn = dict(feedforward_channels=2048, ffn_drop=0.0)
model = dict(
    type='mmdet_ddetr.DABDeformableDETR',
    with_box_refine=True,
    own_maps=True,
    encoder=dict(layer_cfg=dict(self_attn_cfg=attn, ffn_cfg=ffn)),
    decoder=dict(
        type='mmdet_ddetr.DABDeformableDecoder',
        layer_cfg=dict(self_attn_cfg=attn, cross_attn_cfg=attn, ffn_cfg=ffn),
    ),
    bbox_head=dict(loss_cls=dict(loss_weight=1.0)),
)

optim_wrapper = dict(
    optimizer=dict(lr=1e-4), paramwise_cfg=dict(custom_keys=dict(_delete_=True, backbone=dict(lr_mult=0.1)))
)
auto_scale_lr = dict(base_batch_size=16)
