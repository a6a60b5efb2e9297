"""From a config to what trains it."""

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


def make_runner(cfg: Config) -> Runner | FlexibleRunner:
    """mmengine's Runner for a config, or the one named by its ``runner_type``.

    Two things go beyond mmengine: any of ``default_hooks`` can be None, which leaves it out, where mmengine allows that
    for its own hooks only; and processes started by torchrun on a machine without a GPU are joined by gloo.

    Args:
        cfg: changed in place.
    """
    if cfg.get('launcher') == 'pytorch' and not torch.cuda.is_available():
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    hooks = cfg.get('default_hooks') or {}
    cfg.default_hooks = {name: hook for name, hook in hooks.items() if hook is not None or name in MMENGINE_HOOKS}
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
