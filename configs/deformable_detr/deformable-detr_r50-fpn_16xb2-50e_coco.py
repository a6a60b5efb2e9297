# + FPN: 43.8 AP (paper, table 2), as without.
_base_ = 'deformable-detr_r50_16xb2-50e_coco.py'
model = dict(
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[512, 1024, 2048],
        out_channels=256,
        num_outs=4,
        add_extra_convs='on_input',  # the fourth level from C5, as without FPN
        norm_cfg=dict(type='GN', num_groups=32),
    )
)
