"""Optimizer settings and schedulers of a resumed training: the checkpoint's or the config's.

A checkpoint has them beside the state that they belong to, and mmengine loads all of it.
"""

import warnings
from collections.abc import Iterator, Mapping

from mmengine.optim import OptimWrapperDict, ReduceOnPlateauParamScheduler
from mmengine.runner import EpochBasedTrainLoop

from ..checkpoints import CheckpointError
from ..checkpoints.stored_config import find, parse

WAYS = ('stored', 'config')
IMPLEMENTATION = {'params', 'foreach', 'fused', 'capturable', 'differentiable'}  # no matter of what is computed
PROGRESS = {'_global_step', 'last_step', '_last_value', 'base_values', 'verbose'}  # of a scheduler
PROGRESS |= {'best', 'cooldown_counter', 'num_bad_epochs', 'min_values'}
FROM_CONFIG = (
    'train_cfg',
    'train_dataloader.batch_size',
    'optim_wrapper.clip_grad',
    'optim_wrapper.accumulative_counts',
)  # no part of the state, so that the config's count in any case


def reconcile(runner, checkpoint: dict, schedule: str) -> None:
    """Say where checkpoint and config differ, and change the checkpoint, before the runner loads it, if asked to.

    Args:
        runner: has its optimizer and schedulers as the config wants them at the start of a training.
        schedule: 'stored', the checkpoint's settings are kept, or 'config', the config's are taken, and its schedule
            goes on where it would be by now.

    Raises:
        CheckpointError: the optimizer's state is one of other parameters or of another optimizer; or the checkpoint's
            schedulers are to be kept and the config has none of their kind.
    """
    differences = [*_optimizer_differences(runner, checkpoint), *_scheduler_differences(runner, checkpoint, schedule)]
    if differences and schedule == 'stored':
        runner.logger.warning(
            f'KEPT FROM THE CHECKPOINT: {"; ".join(f"{name} {old} (config: {new})" for name, old, new in differences)}.'
            f' --cfg-options default_hooks.resume.schedule=config takes the settings of the config'
        )
    if schedule == 'config':
        _take_config(runner, checkpoint)
        if differences:
            changes = '; '.join(f'{name} {new} (checkpoint: {old})' for name, old, new in differences)
            runner.logger.warning(f'TAKEN FROM THE CONFIG: {changes}')
    others = [f'{name} {new} (before: {old})' for name, old, new in config_differences(runner.cfg, checkpoint)]
    if others:
        runner.logger.warning(f'Changed since the checkpoint: {"; ".join(others)}')


def config_differences(config: Mapping, checkpoint: Mapping) -> list[tuple]:
    """(name, value in the checkpoint's config, value in this one), of FROM_CONFIG."""
    source = find(checkpoint)
    try:
        stored = parse(source) if source else None
    except CheckpointError:  # more than plain values
        stored = None
    if stored is None:
        return []
    differences = []
    for name in FROM_CONFIG:
        old, new = _get(stored, name), _get(config, name)
        for key in {**old, **new} if isinstance(old, Mapping) and isinstance(new, Mapping) else [None]:
            a, b, path = (old, new, name) if key is None else (old.get(key), new.get(key), f'{name}.{key}')
            if a != b:
                differences.append((path, a, b))
    return differences


def _get(config: Mapping, name: str):
    for part in name.split('.'):
        config = config.get(part) if hasattr(config, 'get') else None  # a Config is no Mapping
    return config


def _by_name(wrappers, stored) -> Iterator[tuple]:
    """(prefix for messages, optimizer wrapper, its state) of each optimizer."""
    if isinstance(wrappers, OptimWrapperDict):
        yield from ((f'{name}: ', wrapper, stored[name]) for name, wrapper in wrappers.items() if name in stored)
    else:
        yield '', wrappers, stored


def _optimizer_differences(runner, checkpoint: dict) -> list[tuple]:
    differences = {}
    for prefix, wrapper, state in _by_name(runner.optim_wrapper, checkpoint.get('optimizer') or {}):
        ours, theirs = wrapper.optimizer.param_groups, state.get('param_groups')
        if theirs is None:  # weights without an optimizer
            continue
        _check_same_parameters(prefix, ours, theirs)
        for new, old in zip(ours, theirs):
            for key in ('lr', *(new.keys() & old.keys() - IMPLEMENTATION - {'lr', 'initial_lr'})):
                a, b = (group.get('initial_lr', group['lr']) if key == 'lr' else group[key] for group in (old, new))
                if _plain(a) != _plain(b):
                    name = {'lr': 'learning rate', 'weight_decay': 'weight decay'}.get(key, key)
                    differences.setdefault((prefix + name, str(_plain(a)), str(_plain(b))))
    return list(differences)


def _check_same_parameters(prefix: str, ours: list[dict], theirs: list[dict]) -> None:
    sizes = [[len(group['params']) for group in groups] for groups in (theirs, ours)]
    by_number = all(isinstance(name, int) for group in theirs for name in group['params'])  # not so under FSDP
    if len(ours) != len(theirs) or (by_number and sizes[0] != sizes[1]):
        raise CheckpointError(
            f"{prefix}the checkpoint's optimizer has {sum(sizes[0])} tensors in {len(theirs)} groups, the config's "
            f'{sum(sizes[1])} in {len(ours)}: a training goes on with the same model, frozen parameters and '
            f'paramwise_cfg only. To start a new one from its weights, set load_from instead of resume'
        )
    keys = [set().union(*groups) - IMPLEMENTATION for groups in (theirs, ours)]
    if keys[0] - keys[1] - {'initial_lr', 'initial_momentum'} and keys[1] - keys[0] - {
        'initial_lr',
        'initial_momentum',
    }:
        raise CheckpointError(
            f"{prefix}the checkpoint's optimizer is of another type: it has {', '.join(sorted(keys[0] - keys[1]))}, "
            f'that of the config {", ".join(sorted(keys[1] - keys[0]))}. To start a new training from its weights, set '
            f'load_from instead of resume'
        )


def _schedulers(runner, checkpoint: dict) -> Iterator[tuple[str, list, list]]:
    """(prefix, the runner's schedulers, their states in the checkpoint) of each optimizer."""
    ours, theirs = runner.param_schedulers, checkpoint.get('param_schedulers')
    if ours is None or theirs is None:  # mmengine says so
        return
    if isinstance(ours, dict):
        yield from ((f'{name}: ', ours[name], theirs[name]) for name in ours.keys() & theirs.keys())
    else:
        yield '', ours, theirs


def _scheduler_differences(runner, checkpoint: dict, schedule: str) -> list[tuple]:
    differences = []
    for prefix, ours, theirs in _schedulers(runner, checkpoint):
        states = [scheduler.state_dict() for scheduler in ours]
        if [state.keys() for state in states] != [state.keys() for state in theirs]:
            if schedule == 'stored':
                raise CheckpointError(
                    f'{prefix}the checkpoint has {len(theirs)} schedulers (param_scheduler), the config {len(ours)}, '
                    f"of another kind. Choose: the config's by --cfg-options default_hooks.resume.schedule=config, or "
                    f"the checkpoint's by the param_scheduler that it was trained with"
                )
            differences.append((f'{prefix}param_scheduler', f'of {len(theirs)}', f'of {len(ours)} schedulers'))
            continue
        for number, (scheduler, new, old) in enumerate(zip(ours, states, theirs), 1):
            for key in new.keys() - PROGRESS:
                if not callable(new[key]) and _plain(old[key]) != _plain(new[key]):
                    name = f'{prefix}{key} of scheduler {number} ({type(scheduler).__name__})'
                    differences.append((name, _plain(old[key]), _plain(new[key])))
    return differences


def _take_config(runner, checkpoint: dict) -> None:
    meta = checkpoint['meta']
    epochs = meta['epoch'] if isinstance(runner.train_loop, EpochBasedTrainLoop) else 0
    for prefix, ours, _ in _schedulers(runner, checkpoint):
        fast_forward(ours, epochs, meta['iter'])
        states = [scheduler.state_dict() for scheduler in ours]
        if prefix:
            checkpoint['param_schedulers'][prefix.removesuffix(': ')] = states
        else:
            checkpoint['param_schedulers'] = states
    for _, wrapper, state in _by_name(runner.optim_wrapper, checkpoint.get('optimizer') or {}):
        pairs = list(zip(wrapper.optimizer.param_groups, state.get('param_groups', [])))
        if 'base_param_settings' in state and hasattr(wrapper, 'base_param_settings'):
            pairs.append((wrapper.base_param_settings, state['base_param_settings']))
        for new, old in pairs:
            old.update({key: value for key, value in new.items() if key != 'params'})


def fast_forward(schedulers: list, epochs: int, iterations: int) -> None:
    """Step schedulers, in the order of a training, as often as it would have by now."""
    schedulers = [s for s in schedulers if not isinstance(s, ReduceOnPlateauParamScheduler)]  # needs the evaluations
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    length = iterations // epochs if epochs else iterations
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of steps before those of the optimizer
        for epoch in range(epochs + 1):
            count = length if epoch < epochs else iterations - epochs * length
            for i in range(count):
                if all(scheduler._global_step >= scheduler.end for scheduler in by_iteration):
                    for scheduler in by_iteration:
                        scheduler._global_step += count - i  # they only count from here on
                    break
                for scheduler in by_iteration:
                    scheduler.step()
            if epoch < epochs:
                for scheduler in by_epoch:
                    scheduler.step()


def _plain(value):
    """For comparisons and messages: a checkpoint has lists for tuples, and dicts for counters."""
    if isinstance(value, Mapping):
        return sorted(value) if all(count == 1 for count in value.values()) else dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f'{value:.6g}' if isinstance(value, float) else value
