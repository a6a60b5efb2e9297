"""Averaged weights whose window follows from the length of the training."""

import torch
from mmengine.hooks import EMAHook as MMEngineEMAHook
from mmengine.logging import print_log

from mmdet_ddetr.registry import HOOKS

MAX_MOMENTUM = 0.5


@HOOKS.register_module()
class EMAHook(MMEngineEMAHook):
    """mmengine's, with a momentum for any length.

    The average weighs the weights of n iterations ago by (1 - momentum)^n, so that it looks back 1 / momentum
    iterations. A momentum that is right for a long training leaves a short one at its first, random weights.

    Figures, checkpoints and pictures are those of the averaged weights.

    Args:
        share (float): How far the average looks back, as a share in (0, 1) of the training: momentum = 1 / (share *
            iterations), at most 0.5.
        momentum (float, optional): Takes its place.
        compare (bool): Evaluate the weights themselves, too; their figures get ``raw/`` before their names. Takes as
            long as another evaluation.
        **kwargs: of mmengine's ``EMAHook``.
    """

    def __init__(self, share=0.03, momentum=None, compare=False, **kwargs):
        if not 0 < share < 1:
            raise ValueError(f'share must be between 0 and 1, got {share}')
        super().__init__(**kwargs)
        self.share = share
        self.momentum = momentum
        self.compare = compare
        self._raw = {}
        self._swapped = False  # an evaluation has the averages in the model

    def before_run(self, runner):
        if runner.max_iters:  # of a training
            self.ema_cfg['momentum'] = self._momentum(runner)
            print_log(f'EMAHook: momentum {self.ema_cfg["momentum"]:.2g} for {runner.max_iters} iterations', 'current')
        super().before_run(runner)

    def after_train_iter(self, runner, *args, **kwargs):
        self.ema_model.momentum = self._momentum(runner)  # a training by the clock learns how long it will be
        super().after_train_iter(runner, *args, **kwargs)

    def before_val_epoch(self, runner):
        self._raw = _evaluate(runner) if self.compare else {}
        super().before_val_epoch(runner)
        self._swapped = True

    def after_val_epoch(self, runner, metrics=None):
        super().after_val_epoch(runner, metrics)
        self._swapped = False
        if metrics is not None:
            metrics.update({f'raw/{key}': value for key, value in self._raw.items()})  # for the hooks after this one

    def before_save_checkpoint(self, runner, checkpoint):
        if self._swapped:  # a signal came while the averages were evaluated: they are where a checkpoint has them
            checkpoint['ema_state_dict'] = self.ema_model.state_dict()
        else:
            super().before_save_checkpoint(runner, checkpoint)

    def _momentum(self, runner):
        return min(1 / (self.share * runner.max_iters), MAX_MOMENTUM) if self.momentum is None else self.momentum


@torch.no_grad()
def _evaluate(runner) -> dict:
    """The figures of the weights as they are, without any hook."""
    loop = runner.val_loop
    runner.model.eval()
    for batch in loop.dataloader:
        loop.evaluator.process(data_samples=runner.model.val_step(batch), data_batch=batch)
    return loop.evaluator.evaluate(len(loop.dataloader.dataset))
