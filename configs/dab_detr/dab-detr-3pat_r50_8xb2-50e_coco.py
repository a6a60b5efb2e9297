# DAB-DETR with three contents a box, R50: 42.6 AP (official README).
_base_ = 'dab-detr_r50_8xb2-50e_coco.py'
model = dict(num_patterns=3)
