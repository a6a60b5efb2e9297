"""From a config to what trains it."""

import logging
import sys

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from ..hooks.last_checkpoint import resume_newest

MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


def make_runner(cfg: Config) -> Runner | FlexibleRunner:
    """mmengine's Runner for a config, or the one named by its ``runner_type``.

    Four things go beyond mmengine: classes are checked before the first iteration (:class:`ClassesHook`), whatever
    hooks the config has; any of ``default_hooks`` can be None, ``classes`` among them, which leaves it out, where
    mmengine allows that for its own hooks only; processes started by torchrun on a machine without a GPU are joined by
    gloo; and lines that a full disk keeps out of the log file do not each bring a traceback to the console.

    Args:
        cfg: changed in place.
    """
    if cfg.get('launcher') == 'pytorch' and not torch.cuda.is_available():
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    hooks = {'classes': dict(type='mmdet_ddetr.ClassesHook'), **(cfg.get('default_hooks') or {})}
    cfg.default_hooks = {name: hook for name, hook in hooks.items() if hook is not None or name in MMENGINE_HOOKS}
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if isinstance(runner, FlexibleRunner):  # it loads before any hook runs
        resume_newest(runner)
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = _Quiet(handler)
    return runner


class _Quiet:
    """``Handler.handleError``, but for what the disk refuses: the console has the line, too."""

    def __init__(self, handler: logging.Handler):
        self.others = handler.handleError

    def __call__(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            self.others(record)
