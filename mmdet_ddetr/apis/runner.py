"""From a config to what trains it."""

from difflib import get_close_matches

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from ..checkpoints import check_exists
from ..hooks.last_checkpoint import resume_newest
from .configs import ConfigError
from .console import ReadableLog

MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


def make_runner(cfg: Config) -> Runner | FlexibleRunner:
    """mmengine's Runner for a config, or the one named by its ``runner_type``.

    Four things go beyond mmengine: classes are checked before the first iteration (:class:`ClassesHook`), whatever
    hooks the config has; any of ``default_hooks`` can be None, ``classes`` among them, which leaves it out, where
    mmengine allows that for its own hooks only; processes started by torchrun on a machine without a GPU are joined by
    gloo; and the console gets no details that the log file has, see ``console.py``.

    Args:
        cfg: changed in place.

    Raises:
        CheckpointError: the file to start from does not exist.
        ConfigError: there is no such ``runner_type``.
    """
    check_exists(cfg.get('load_from'))
    kind = cfg.get('runner_type', 'Runner')
    base = RUNNERS.get(kind)
    if base is None:
        near = get_close_matches(kind, RUNNERS.module_dict, cutoff=0.5) or RUNNERS.module_dict
        raise ConfigError(f'runner_type: no runner {kind!r} is registered; did you mean {" or ".join(near)}?')
    if cfg.get('launcher') == 'pytorch' and not torch.cuda.is_available():
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    hooks = {'classes': dict(type='mmdet_ddetr.ClassesHook'), **(cfg.get('default_hooks') or {})}
    cfg.default_hooks = {name: hook for name, hook in hooks.items() if hook is not None or name in MMENGINE_HOOKS}
    runner = type(base.__name__, (ReadableLog, base), {}).from_cfg(cfg)
    runner.logger.info(f'Config, environment and all details are in {runner.logger.log_file}')
    if isinstance(runner, FlexibleRunner):  # it loads before any hook runs
        resume_newest(runner)
    return runner
