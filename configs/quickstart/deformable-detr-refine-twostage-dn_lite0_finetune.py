# `tools/finetune.py`: with what gains most on few data in little time (docs/beyond_the_paper.md).
_base_ = 'deformable-detr-refine-twostage_lite0_finetune.py'
model = dict(
    mixed_selection=True,
    decoder=dict(look_forward_twice=True),
    dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(dynamic=True, num_dn_queries=100)),
)
