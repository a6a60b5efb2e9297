# DAB-DETR, DC5-R50: 44.5 AP (official README). Evaluate it with one image a GPU.
_base_ = 'dab-detr_r50_8xb2-50e_coco.py'
model = dict(backbone=dict(type='mmdet_ddetr.ResNetDC5'))
val_dataloader = dict(batch_size=1)
test_dataloader = val_dataloader
