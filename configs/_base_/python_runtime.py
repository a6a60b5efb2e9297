# detr_runtime.py in mmengine's pure-Python syntax.
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.visualization import DetLocalVisualizer
from mmengine.hooks import DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.runner import LogProcessor

from mmdet_ddetr.hooks import (
    ClassesHook,
    EvaluationTableHook,
    FitCheckpointHook,
    LearningCurvesHook,
    MemoryHook,
    NonFiniteHook,
    OptimReportHook,
    ResumeHook,
    SafeCheckpointHook,
    SamplePicturesHook,
    SignalHook,
    WorkDirLockHook,
)
from mmdet_ddetr.visualization import SafeLocalVisBackend

default_scope = 'mmdet'
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval=50),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=SafeCheckpointHook, interval=1, max_keep_ckpts=2, save_best='auto'),
    sampler_seed=dict(type=DistSamplerSeedHook),
    visualization=dict(type=DetVisualizationHook, draw=False),
    classes=dict(type=ClassesHook),
    lock=dict(type=WorkDirLockHook),
    resume=dict(type=ResumeHook),
    fit_checkpoint=dict(type=FitCheckpointHook),
    signals=dict(type=SignalHook),
    non_finite=dict(type=NonFiniteHook),
    memory=dict(type=MemoryHook),
    optim_report=dict(type=OptimReportHook),
    evaluation_table=dict(type=EvaluationTableHook),
    curves=dict(type=LearningCurvesHook),
    pictures=dict(type=SamplePicturesHook),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type=SafeLocalVisBackend)]
visualizer = dict(type=DetLocalVisualizer, vis_backends=vis_backends, name='visualizer')
log_processor = dict(type=LogProcessor, window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
