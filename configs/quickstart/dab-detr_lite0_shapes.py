# DAB-DETR in the size of detr_lite0_shapes.py, for benchmarks/convergence.py; same data, backbone, schedule.
_base_ = 'conditional-detr_lite0_shapes.py'

ffn = dict(act_cfg=dict(type='PReLU'))
model = dict(
    type='mmdet_ddetr.DABDETR',
    encoder=dict(type='mmdet_ddetr.DABEncoder', layer_cfg=dict(ffn_cfg=ffn)),
    decoder=dict(type='mmdet_ddetr.DABDecoder', layer_cfg=dict(ffn_cfg=ffn)),
    positional_encoding=dict(temperature=20),
)
