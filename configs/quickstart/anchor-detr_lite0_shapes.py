# Anchor DETR in the size of detr_lite0_shapes.py, for benchmarks/convergence.py.
_base_ = 'conditional-detr_lite0_shapes.py'

embed_dims = 64
attn = dict(_delete_=True, type='mmdet_ddetr.MultiheadAttention', embed_dims=embed_dims, num_heads=4, batch_first=True)
rcda = dict(_delete_=True, type='mmdet_ddetr.RCDA', embed_dims=embed_dims, num_heads=4)
model = dict(
    type='mmdet_ddetr.AnchorDETR',
    num_queries=10,  # points: as many queries as the others have
    num_patterns=3,
    own_maps=True,
    neck=dict(bias=True, norm_cfg=dict(type='GN', num_groups=16)),
    encoder=dict(layer_cfg=dict(self_attn_cfg=rcda)),
    decoder=dict(post_norm_cfg=None, layer_cfg=dict(self_attn_cfg=attn, cross_attn_cfg=rcda)),
    positional_encoding=dict(offset=-0.5),
)
