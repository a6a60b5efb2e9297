"""Averaged weights whose window follows from the length of the training."""

from mmengine.hooks import EMAHook as MMEngineEMAHook
from mmengine.logging import print_log

from mmdet_ddetr.registry import HOOKS

MAX_MOMENTUM = 0.5


@HOOKS.register_module()
class EMAHook(MMEngineEMAHook):
    """mmengine's, with a momentum for any length.

    The average weighs the weights of n iterations ago by (1 - momentum)^n, so that it looks back 1 / momentum
    iterations. A momentum that is right for a long training leaves a short one at its first, random weights.

    Args:
        share (float): How far the average looks back, as a share in (0, 1) of the training: momentum = 1 / (share *
            iterations), at most 0.5.
        momentum (float, optional): Takes its place.
        **kwargs: of mmengine's ``EMAHook``.
    """

    def __init__(self, share=0.03, momentum=None, **kwargs):
        if not 0 < share < 1:
            raise ValueError(f'share must be between 0 and 1, got {share}')
        super().__init__(**kwargs)
        self.share = share
        self.momentum = momentum

    def before_run(self, runner):
        if self.momentum is not None:
            self.ema_cfg['momentum'] = self.momentum
        elif runner.max_iters:  # of a training
            self.ema_cfg['momentum'] = min(1 / (self.share * runner.max_iters), MAX_MOMENTUM)
            print_log(f'EMAHook: momentum {self.ema_cfg["momentum"]:.2g} for {runner.max_iters} iterations', 'current')
        super().before_run(runner)
