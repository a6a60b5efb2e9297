# Deformable DETR, refined and two-stage, as mmdet has it; as wide and deep and with as many queries as ours, see
# dino.py.
_base_ = 'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
custom_imports = dict(imports=['_any_width'], allow_failed_imports=False)

C = 64
attn = dict(embed_dims=C, num_heads=4)
ffn = dict(embed_dims=C, feedforward_channels=4 * C)
model = dict(
    type='AnyWidthDeformableDETR',
    num_queries=100,
    backbone=dict(_delete_=True, type='mmdet_ddetr.EfficientNetLite', out_indices=(2, 3, 4)),
    neck=dict(in_channels=[40, 112, 320], out_channels=C, norm_cfg=dict(num_groups=16)),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attn, ffn_cfg=ffn)),
    decoder=dict(num_layers=3, layer_cfg=dict(self_attn_cfg=attn, cross_attn_cfg=attn, ffn_cfg=ffn)),
    positional_encoding=dict(num_feats=C // 2),
    bbox_head=dict(embed_dims=C),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3, fused=True))
auto_scale_lr = dict(enable=True, base_batch_size=4, rule='sqrt')
