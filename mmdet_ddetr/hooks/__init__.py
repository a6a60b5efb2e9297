from .accelerate import AccelerateHook
from .progress_bar import ProgressBarHook

__all__ = ['AccelerateHook', 'ProgressBarHook']
