# SAM-DETR in the size of detr_lite0_shapes.py, for benchmarks/convergence.py; same data, backbone, schedule.
_base_ = 'conditional-detr_lite0_shapes.py'

cross_attn = dict(
    _delete_=True,
    type='mmdet_ddetr.SemanticAlignedAttention',
    embed_dims=64,
    num_heads=4,
    hidden_dims=(64, 128, 128),  # a quarter, as the channels are
)
model = dict(
    type='mmdet_ddetr.SAMDETR',
    decoder=dict(layer_cfg=dict(cross_attn_cfg=cross_attn)),
    positional_encoding=dict(offset=-0.5),
)
