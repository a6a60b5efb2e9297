# DAB-Deformable-DETR whose queries start from the encoder's proposals, R50: 49.7 AP (detrex).
_base_ = 'dab-deformable-detr_r50_8xb2-50e_coco.py'
model = dict(as_two_stage=True)
