# mmdet's runtime; keeps the best and the last checkpoints, not one for every epoch. docs/training.md says what the
# hooks do; name=None leaves one out.
_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(type='mmdet_ddetr.SafeCheckpointHook', interval=1, max_keep_ckpts=2, save_best='auto'),
    visualization=dict(type='DetVisualizationHook', draw=False),  # tools/test.py --show-dir switches it on
    classes=dict(type='mmdet_ddetr.ClassesHook'),
    lock=dict(type='mmdet_ddetr.WorkDirLockHook'),
    resume=dict(type='mmdet_ddetr.ResumeHook'),
    fit_checkpoint=dict(type='mmdet_ddetr.FitCheckpointHook'),
    signals=dict(type='mmdet_ddetr.SignalHook'),
    non_finite=dict(type='mmdet_ddetr.NonFiniteHook'),
    memory=dict(type='mmdet_ddetr.MemoryHook'),
    optim_report=dict(type='mmdet_ddetr.OptimReportHook'),
    evaluation_table=dict(type='mmdet_ddetr.EvaluationTableHook'),
    curves=dict(type='mmdet_ddetr.LearningCurvesHook'),
    pictures=dict(type='mmdet_ddetr.SamplePicturesHook'),
)

vis_backends = [dict(type='mmdet_ddetr.SafeLocalVisBackend')]
visualizer = dict(vis_backends=vis_backends)
