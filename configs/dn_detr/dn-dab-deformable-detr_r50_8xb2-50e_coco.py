# DN-Deformable-DETR: DAB-Deformable-DETR with denoising, R50, 50 epochs: 49.5 AP (official README).
_base_ = '../dab_detr/dab-deformable-detr_r50_8xb2-50e_coco.py'
model = dict(
    dn_cfg=dict(
        contrastive=False,
        indicator=True,
        label_noise_scale=0.4,  # a fifth of the labels
        box_noise_scale=0.4,
        group_cfg=dict(dynamic=False, num_groups=5),
    )
)
