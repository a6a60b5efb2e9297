"""Start from a checkpoint of another code base, of other classes or another number of queries."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop
from torch.distributed.fsdp import FullyShardedDataParallel

from mmdet_ddetr.checkpoints import CheckpointError, Report, adopt, check_fit, fit, weights_of
from mmdet_ddetr.registry import HOOKS
from mmdet_ddetr.unwrap import unwrap


@HOOKS.register_module()
class FitCheckpointHook(Hook):
    """Makes ``load_from`` take any checkpoint that :func:`mmdet_ddetr.checkpoints.convert` knows.

    A training may start from a model with other classes or another number of queries, see
    :func:`mmdet_ddetr.checkpoints.fit`; a test may not, as it would measure rows that nobody has trained. Under FSDP no
    process has the whole model to fit to: there the checkpoint stays as it is.
    """

    def after_load_checkpoint(self, runner, checkpoint):
        """Change ``checkpoint``, before the runner loads it, unless a training is resumed.

        Raises:
            CheckpointError: the model cannot hold the weights, or would miss some in a test.
        """
        if runner._resume or isinstance(runner.model, FullyShardedDataParallel):
            return
        try:
            self._fit(
                checkpoint, unwrap(runner.model), isinstance(runner._train_loop, BaseLoop)
            )  # a test leaves it a config
        except CheckpointError as error:
            raise CheckpointError(f'{runner._load_from}: {error}') from None

    @staticmethod
    def _fit(checkpoint, model, is_training) -> None:
        checkpoint.update(adopt(checkpoint, model))
        state_dict = weights_of(checkpoint)
        if is_training:
            report = Report()
            checkpoint['state_dict'] = fit(state_dict, model, report)
            if report != Report():
                print_log(f'Fitted the checkpoint to the model:\n{report}', logger='current')
        else:
            checkpoint['state_dict'] = check_fit(state_dict, model)
