from collections import defaultdict

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from torch import nn

from ..registry import HOOKS
from ..unwrap import unwrap

FROZEN = ('frozen', '-')


@HOOKS.register_module()
class OptimReportHook(Hook):
    """Logs, before training starts, what each optimizer step is made of.

    The number of images behind a step, and the parameters by learning rate and weight decay, with the key of
    ``paramwise_cfg.custom_keys`` that put them there. A key that matches none is shown with 0 tensors.
    """

    priority = 'BELOW_NORMAL'  # before ProgressBarHook takes the console

    def before_train(self, runner) -> None:
        wrappers = runner.optim_wrapper
        wrappers = wrappers if isinstance(wrappers, OptimWrapperDict) else {'': wrappers}
        keys = list(((runner.cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}).get('custom_keys') or {})
        images = runner.train_dataloader.batch_sampler.batch_size
        world = get_world_size()
        for name, wrapper in wrappers.items():
            counts = wrapper._accumulative_counts
            title = f'{name} {type(wrapper.optimizer).__name__}'.strip()
            runner.logger.info(
                f'{title}, {images * world * counts} images a step (processes: {world}, images in a batch: {images}, '
                f'batches accumulated: {counts})\n{parameter_table(unwrap(runner.model), wrapper.optimizer, keys)}'
            )


def parameter_table(model: nn.Module, optimizer, keys: list[str]) -> str:
    """Parameters of a model by learning rate and weight decay.

    Args:
        model: not wrapped.
        optimizer: of some or all of its parameters; the rates before any warm-up are shown.
        keys: parts of parameter names; a parameter counts to the longest that it contains, as in mmengine.
    """
    settings = {
        id(parameter): (f'{group.get("initial_lr", group["lr"]):.3g}', f'{group.get("weight_decay", 0):.3g}')
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    rows = defaultdict(lambda: [0, 0])
    for name, parameter in model.named_parameters():
        key = max((key for key in keys if key in name), key=len, default='(others)')
        lr, decay = settings.get(id(parameter), FROZEN) if parameter.requires_grad else FROZEN
        rows[key, lr, decay][0] += 1
        rows[key, lr, decay][1] += parameter.numel()
    for key in {*keys} - {row[0] for row in rows}:
        rows[key, '-', '-'] = [0, 0]
    cells = [('name contains', 'tensors', 'parameters', 'lr', 'weight decay')]
    cells += [(key, str(tensors), f'{size:,}', lr, decay) for (key, lr, decay), (tensors, size) in sorted(rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return '\n'.join(
        f'  {row[0]:{widths[0]}}  ' + '  '.join(f'{cell:>{width}}' for cell, width in zip(row[1:], widths[1:]))
        for row in cells
    )
