# `make demo`: the shapes with what costs little and learns in fewer steps (docs/beyond_the_paper.md).
_base_ = 'deformable-detr-refine-twostage_lite0_shapes.py'
model = dict(
    mixed_selection=True,
    decoder=dict(look_forward_twice=True),
    dn_cfg=dict(group_cfg=dict(dynamic=True, num_dn_queries=40)),
)
