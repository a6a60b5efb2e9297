# DAB-DETR whose boxes' centres are drawn once, DC5-R50: 44.7 AP (official README, whose code trains them all the same).
_base_ = 'dab-detr_r50-dc5_8xb2-50e_coco.py'
model = dict(with_random_refpoints=True)
