# DAB-DETR with three contents a box, DC5-R50: 45.7 AP (official README).
_base_ = 'dab-detr_r50-dc5_8xb2-50e_coco.py'
model = dict(num_patterns=3)
