# Beyond the paper (docs/beyond_the_paper.md): mixed selection, look-forward-twice, denoising and one-to-many queries.
_base_ = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
model = dict(
    mixed_selection=True,
    decoder=dict(look_forward_twice=True),
    dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(dynamic=True, num_dn_queries=100)),
    num_queries_one2many=1500,
    k_one2many=6,
)
