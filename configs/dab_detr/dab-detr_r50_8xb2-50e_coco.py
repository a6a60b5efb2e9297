# DAB-DETR, R50, 50 epochs: 42.2 AP (official README).
_base_ = '../conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'

attn = dict(attn_drop=0.0, proj_drop=0.0)
ffn = dict(ffn_drop=0.0, act_cfg=dict(type='PReLU'))
model = dict(
    type='mmdet_ddetr.DABDETR',
    encoder=dict(type='mmdet_ddetr.DABEncoder', layer_cfg=dict(self_attn_cfg=dict(dropout=0.0), ffn_cfg=ffn)),
    decoder=dict(type='mmdet_ddetr.DABDecoder', layer_cfg=dict(self_attn_cfg=attn, cross_attn_cfg=attn, ffn_cfg=ffn)),
    positional_encoding=dict(temperature=20),
    bbox_head=dict(loss_cls=dict(loss_weight=1.0)),
    test_cfg=dict(max_per_img=300),
)
