# Test-time augmentation for `tools/test.py --tta`: four scales, each with and without a horizontal flip. The paper
# publishes neither its scales nor how it merges (table 3); mmdet_ddetr.DDetrTTAModel says how this does.
tta_model = dict(type='mmdet_ddetr.DDetrTTAModel', max_per_img=100)
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=scale, keep_ratio=True)
                for scale in ((1066, 640), (1333, 800), (1666, 1000), (2000, 1200))
            ],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
