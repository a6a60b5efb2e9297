# DN-DETR in the size of detr_lite0_shapes.py, for benchmarks/convergence.py; same data, backbone, schedule.
_base_ = 'dab-detr_lite0_shapes.py'
model = dict(
    dn_cfg=dict(
        contrastive=False,
        label_noise_scale=0.4,
        box_noise_scale=0.4,
        group_cfg=dict(dynamic=False, num_groups=5),
    )
)
