# Anchor DETR, R50: 42.1 AP (official README).
_base_ = '../conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'

attn = dict(_delete_=True, type='mmdet_ddetr.MultiheadAttention', embed_dims=256, num_heads=8, batch_first=True)
rcda = dict(_delete_=True, type='mmdet_ddetr.RCDA', embed_dims=256, num_heads=8)
ffn = dict(feedforward_channels=1024, ffn_drop=0.0)
model = dict(
    type='mmdet_ddetr.AnchorDETR',
    num_patterns=3,
    own_maps=True,  # one image a GPU, as the published weights were trained: padding reaches neither norm nor means
    neck=dict(bias=True, norm_cfg=dict(type='GN', num_groups=32)),
    encoder=dict(layer_cfg=dict(self_attn_cfg=rcda, ffn_cfg=ffn)),
    decoder=dict(
        type='mmdet_ddetr.DetrDecoder',
        post_norm_cfg=None,
        layer_cfg=dict(type='mmdet_ddetr.DetrDecoderLayer', self_attn_cfg=attn, cross_attn_cfg=rcda, ffn_cfg=ffn),
    ),
    positional_encoding=dict(offset=-0.5),
)

train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
