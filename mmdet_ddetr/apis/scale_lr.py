"""The learning rate that fits the number of images behind an optimizer step."""

import os
from numbers import Real

from mmengine.config import Config

from ..hooks.errors import StartError

RULES = {'linear': 1.0, 'sqrt': 0.5}  # exponents
_WORLD_SIZE = {'none': None, 'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS', 'mpi': 'OMPI_COMM_WORLD_SIZE'}


def scale_lr(cfg: Config, world_size: int | None = None) -> str | None:
    """Scale a config's learning rate, in place, if its ``auto_scale_lr`` is enabled.

    mmengine's runner does this, too, but knows neither accumulated batches nor another rule than the linear one. So it
    is done here, and switched off there.

    Args:
        cfg: its ``auto_scale_lr`` has ``enable``, ``base_batch_size``, the images a step that the rate was chosen for,
            and ``rule``: 'linear' (default), the rate grows with the images, or 'sqrt', with their root, which fits
            Adam's normalised steps.
        world_size: number of processes; None: as the config's launcher tells in the environment.

    Returns:
        What was done, for the log; None if nothing was.

    Raises:
        StartError: a setting that the rate follows from is missing or of a wrong value; names it.
    """
    auto = cfg.get('auto_scale_lr') or {}
    if not auto.get('enable', False):
        return None
    rule = auto.get('rule', 'linear')
    if rule not in RULES:
        raise StartError(f'auto_scale_lr.rule must be one of {list(RULES)}, got {rule!r}')
    if 'base_batch_size' not in auto:
        raise StartError('auto_scale_lr.enable is set, but no auto_scale_lr.base_batch_size, from which to scale')
    if world_size is None:
        variable = _WORLD_SIZE[cfg.get('launcher', 'none')]
        world_size = int(os.environ[variable]) if variable else 1
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    for key, value in {
        'auto_scale_lr.base_batch_size': auto.base_batch_size,
        'train_dataloader.batch_size': cfg.train_dataloader.batch_size,
        'optim_wrapper.accumulative_counts': accumulated,
        'optim_wrapper.optimizer.lr': cfg.optim_wrapper.optimizer.lr,
    }.items():
        if not isinstance(value, Real) or not value > 0:
            raise StartError(f'{key} must be a number above 0, got {value!r}')
    images = cfg.train_dataloader.batch_size * world_size * accumulated
    factor = (images / auto.base_batch_size) ** RULES[rule]
    before = cfg.optim_wrapper.optimizer.lr
    cfg.optim_wrapper.optimizer.lr = before * factor
    auto.enable = False
    return (
        f'Learning rate {before:.3g} x {factor:.3g} = {before * factor:.3g}: {images} images a step instead of '
        f'{auto.base_batch_size}, {rule} rule (auto_scale_lr; off: --cfg-options auto_scale_lr.enable=False)'
    )
