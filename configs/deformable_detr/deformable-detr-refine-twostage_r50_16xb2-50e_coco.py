# ++ two-stage: 46.2 AP (paper, table 1).
_base_ = 'deformable-detr-refine_r50_16xb2-50e_coco.py'
model = dict(as_two_stage=True)
