# DAB-Deformable-DETR in the size of deformable-detr_lite0_shapes.py, for benchmarks/convergence.py.
_base_ = 'deformable-detr_lite0_shapes.py'
model = dict(
    type='mmdet_ddetr.DABDeformableDETR', with_box_refine=True, decoder=dict(type='mmdet_ddetr.DABDeformableDecoder')
)
