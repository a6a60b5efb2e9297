"""Stop at the first value that is not finite, and say where it came from."""

import io
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.dist import get_rank, is_distributed
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..files import write_atomically
from ..registry import HOOKS
from ..unwrap import unwrap


class NonFiniteError(FloatingPointError):
    """A loss, a matching cost or a gradient is nan or infinite."""


class _Found(Exception):
    pass


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Ends the training before a value that is nan or infinite reaches the weights.

    The error says what was not finite, which images were in the batch and, found by repeating the iteration with hooks
    on every module, where it appeared first. Batch and weights are saved as ``non_finite_iter_<n>.pth`` in the work
    directory, for :func:`explain_forward`.

    Losses and matching costs are checked in every iteration. So is the norm of the gradients before the optimizer's
    step, except with loss scaling (fp16), where one that is not finite is ordinary and the step is left out.
    """

    def __init__(self):
        self._undo = []

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        self._undo.append(model.register_forward_hook(_check_losses).remove)
        for wrapper in _wrappers(runner.optim_wrapper):
            if not hasattr(wrapper, 'loss_scaler'):
                check = _GradientCheck(wrapper)
                self._undo.append(wrapper.optimizer.register_step_pre_hook(check).remove)
        step, own = runner.model.train_step, vars(runner.model).get('train_step')

        def train_step(data, optim_wrapper):
            generators = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
            try:
                return step(data, optim_wrapper=optim_wrapper)
            except (NonFiniteError, ValueError) as error:  # ValueError: of the matcher, ours or mmdet's
                message = _explain(runner, model, data, error, generators)
                if message is None:
                    raise
                raise NonFiniteError(message) from error

        def restore():
            if own is None:
                del runner.model.train_step
            else:
                runner.model.train_step = own

        runner.model.train_step = train_step
        self._undo.append(restore)

    def after_train(self, runner) -> None:
        while self._undo:
            self._undo.pop()()


def _wrappers(optim_wrapper: OptimWrapper | OptimWrapperDict) -> list[OptimWrapper]:
    return list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]


def _check_losses(model: nn.Module, args: tuple, output) -> None:
    """Forward hook of a detector; its output is a dict in mode 'loss' only."""
    if not isinstance(output, dict):
        return
    losses = {
        name: sum(part.detach().float().sum() for part in (value if isinstance(value, list | tuple) else [value]))
        for name, value in output.items()
        if 'loss' in name
    }
    if losses and not torch.isfinite(sum(losses.values())):
        names = [name for name, value in losses.items() if not torch.isfinite(value)]
        raise NonFiniteError(f'the loss is not finite ({", ".join(names) or "the sum of all"})')


class _GradientCheck:
    """Pre-hook of an optimizer's step."""

    def __init__(self, wrapper: OptimWrapper):
        self.wrapper = wrapper

    def __call__(self, optimizer, args, kwargs) -> None:
        if self.wrapper.clip_grad_kwargs and self.wrapper.grad_name == 'grad_norm':
            norm = float(self.wrapper.message_hub.get_scalar('train/grad_norm').current())  # of before the clipping
        else:
            gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        if not norm < float('inf'):
            raise NonFiniteError(f'the gradient is not finite (norm {norm}), although the loss is')


def _explain(runner, model: nn.Module, data, error: Exception, generators: tuple) -> str | None:
    """The whole message, or None if all values are finite and the error is another one."""
    # the weights of a sharded model can be neither used nor saved by one process alone
    sharded = isinstance(runner.model, FullyShardedDataParallel)
    state_dict = {} if sharded else {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def repeat(explain):
        torch.set_rng_state(generators[0])
        if generators[1] is not None:
            torch.cuda.set_rng_state(generators[1])
        with runner.optim_wrapper.optim_context(model):
            return explain(model, data)

    if sharded:
        first = 'not looked for in a sharded model' if 'finite' in str(error) else None
    else:
        first = repeat(explain_forward)
    if first is None and isinstance(error, NonFiniteError) and 'gradient' in str(error) and not is_distributed():
        first = repeat(explain_backward)
    if first is None and not isinstance(error, NonFiniteError):
        return None
    metainfo = [sample.metainfo for sample in data['data_samples']]
    images = ', '.join(f'{meta.get("img_id", "?")} ({meta.get("img_path", "no path")})' for meta in metainfo)
    rank = f'_rank{get_rank()}' if is_distributed() else ''
    path = Path(runner.work_dir, f'non_finite_iter_{runner.iter}{rank}.pth')
    buffer = io.BytesIO()
    torch.save(
        dict(
            iteration=runner.iter,
            error=str(error),
            first=first,
            image_ids=[meta.get('img_id') for meta in metainfo],
            batch=data,
            state_dict=state_dict,
            generator=generators[0],
        ),
        buffer,
    )
    try:
        write_atomically(path, buffer.getvalue())
        saved = f'saved: {path} (batch and weights)'
    except OSError as failure:
        saved = f'batch and weights could not be saved: {failure}'
    return (
        f'iteration {runner.iter}: {error}\n'
        f'first:  {first or "in the computation of the loss: inputs, weights and outputs of all modules are finite"}\n'
        f'images: {images}\n'
        f'{saved}'
    )


@torch.no_grad()
def explain_forward(model: nn.Module, data: dict) -> str | None:
    """Say where, in a forward pass, the first value appears that is nan or infinite.

    Args:
        model: a detector of mmdet's interface, not wrapped.
        data: a batch as the data loader gives it.

    Returns:
        The first of: an image, a ground-truth box, a weight, the input or output of a module in the order of
            computation.
        None if all of these are finite.
    """
    batch = model.data_preprocessor(data, True)
    for sample, image in zip(batch['data_samples'], batch['inputs']):
        name = f'of image {sample.metainfo.get("img_id", "?")} ({sample.metainfo.get("img_path", "no path")})'
        boxes = sample.gt_instances.bboxes
        for what, tensor in (('the pixels', image), ('the ground-truth boxes', getattr(boxes, 'tensor', boxes))):
            if fault := _fault(tensor):
                return f'{what} {name}: {fault}'
    for name, parameter in model.named_parameters():
        if fault := _fault(parameter):
            return f'the weight {name}: {fault}'

    def before(name):
        def hook(module, args, kwargs):
            # a mask may well say -inf
            values = [*args, *(value for key, value in kwargs.items() if 'mask' not in key)]
            _raise_if_any(values, f'the input of {name} ({type(module).__name__})')

        return hook

    def after(name):
        def hook(module, args, output):
            _raise_if_any(output, f'the output of {name} ({type(module).__name__})')

        return hook

    handles = []
    for name, module in model.named_modules():
        if name and module is not model.data_preprocessor:
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name)))
    try:
        # the loss averages over the processes, and the others are not here to take part
        model(**batch, mode='tensor' if is_distributed() else 'loss')
    except _Found as found:
        return str(found)
    except (NonFiniteError, ValueError):
        return None
    finally:
        for handle in handles:
            handle.remove()
    return None


def explain_backward(model: nn.Module, data: dict) -> str | None:
    """Say where, in the backward pass of a finite loss, the first gradient appears that is nan or infinite.

    Arguments as in :func:`explain_forward`; the gradients of the weights are overwritten.
    """
    faults = []

    def after(name):
        def watch(gradient):
            if fault := _fault(gradient):
                faults.append(f'the gradient of the output of {name}: {fault}')

        def hook(module, args, output):
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(watch)

        return hook

    handles = [module.register_forward_hook(after(name)) for name, module in model.named_modules() if name]
    try:
        model.zero_grad()
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        model.parse_losses(losses)[0].backward()
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and (fault := _fault(parameter.grad)):
            faults.append(f'the gradient of {name}: {fault}')
    return faults[0] if faults else None


def _raise_if_any(values, what: str) -> None:
    for tensor in _tensors(values):
        if fault := _fault(tensor):
            raise _Found(f'{what}: {fault}')


def _tensors(values) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _fault(tensor: Tensor) -> str | None:
    """In words, or None if all values are finite."""
    if not tensor.is_floating_point() or torch.isfinite(tensor).all():
        return None
    n_nan, n_inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f'{n_nan} nan and {n_inf} inf in {list(tensor.shape)}'
