# + iterative bounding box refinement: 45.4 AP (paper, table 1).
_base_ = 'deformable-detr_r50_16xb2-50e_coco.py'
model = dict(with_box_refine=True)
