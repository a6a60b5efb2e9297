from mmengine.hooks import Hook

from ..acceleration import accelerate, is_accelerated
from ..registry import HOOKS


@HOOKS.register_module()
class AccelerateHook(Hook):
    """``mmdet_ddetr.accelerate`` on the runner's model before it trains, validates or tests.

    In the config of any mmdet model: ``custom_hooks = [dict(type='mmdet_ddetr.AccelerateHook')]``. Parameters and
    state_dict are unchanged, so checkpoints written with and without the hook are the same.
    """

    priority = 'VERY_HIGH'  # before hooks that copy the model

    def before_run(self, runner) -> None:
        changed = accelerate(runner.model)
        if changed:
            modules, use = ('module', 'uses') if changed == 1 else ('modules', 'use')
            runner.logger.info(
                f'AccelerateHook: {changed} MultiScaleDeformableAttention {modules} of mmcv now {use} the operator of '
                f'mmdet_ddetr'
            )
        elif not any(map(is_accelerated, runner.model.modules())):  # else an earlier run of this runner did it
            runner.logger.warning(
                f'AccelerateHook changed nothing: {type(runner.model).__name__} has no module with the forward of '
                f'mmcv.ops.MultiScaleDeformableAttention'
            )
