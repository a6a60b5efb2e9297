# Anchor points on a grid of 17 x 17 that stays, in place of learned ones (paper, figure 4).
_base_ = 'anchor-detr_r50_8xb1-50e_coco.py'
model = dict(num_queries=289, anchors='grid')
