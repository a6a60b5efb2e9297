from .accelerate import AccelerateHook
from .checkpoint import SafeCheckpointHook
from .classes import ClassesHook
from .ema import EMAHook
from .errors import StartError, WorkDirInUseError
from .evaluation_table import EvaluationTableHook
from .fit_checkpoint import FitCheckpointHook
from .freeze import FreezeHook
from .learning_curves import LearningCurvesHook
from .memory import MemoryHook
from .non_finite import NonFiniteError, NonFiniteHook
from .optim_report import OptimReportHook
from .optimize_for_inference import OptimizeForInferenceHook
from .patience import PatienceHook
from .progress_bar import ProgressBarHook
from .resume import ResumeHook
from .sample_pictures import SamplePicturesHook
from .sampling_points import SamplingPointsHook
from .signals import SignalHook
from .work_dir_lock import WorkDirLockHook

__all__ = [
    'AccelerateHook',
    'ClassesHook',
    'EMAHook',
    'EvaluationTableHook',
    'FitCheckpointHook',
    'FreezeHook',
    'LearningCurvesHook',
    'MemoryHook',
    'NonFiniteError',
    'NonFiniteHook',
    'OptimReportHook',
    'OptimizeForInferenceHook',
    'PatienceHook',
    'ProgressBarHook',
    'ResumeHook',
    'SafeCheckpointHook',
    'SamplePicturesHook',
    'SamplingPointsHook',
    'SignalHook',
    'StartError',
    'WorkDirInUseError',
    'WorkDirLockHook',
]
