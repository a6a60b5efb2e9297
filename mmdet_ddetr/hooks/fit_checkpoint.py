"""Start from a checkpoint of another code base, of other classes or another number of queries."""

import logging
from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmdet_ddetr.checkpoints import (
    CheckpointError,
    ConversionReport,
    adopt,
    check_fit,
    fit,
    names_in,
    take_classes,
    weights_of,
)
from mmdet_ddetr.datasets.class_names import listed
from mmdet_ddetr.registry import HOOKS
from mmdet_ddetr.unwrap import unwrap

from .classes import metainfo_of


@HOOKS.register_module()
class FitCheckpointHook(Hook):
    """Makes ``load_from`` take any checkpoint that :func:`mmdet_ddetr.checkpoints.convert` knows.

    Classes keep their rows by name, in training and in tests. A training may start from a model with other classes or
    another number of queries, see :func:`mmdet_ddetr.checkpoints.fit`; a test may not, as it would measure rows that
    nobody has trained. Under FSDP no process has the whole model to fit to: there the checkpoint stays as it is.

    Args:
        class_names: {class of the config: its name in the checkpoint}, where they differ.
    """

    def __init__(self, class_names: dict[str, str] | None = None):
        self.class_names = class_names or {}

    def after_load_checkpoint(self, runner, checkpoint):
        """Change ``checkpoint``, before the runner loads it, unless a training is resumed.

        Raises:
            CheckpointError: the model cannot hold the weights, or would miss some in a test; or a training is resumed
                with its classes in another order.
        """
        names, classes = names_in(checkpoint), classes_of(runner)
        is_training = isinstance(runner._train_loop, BaseLoop)  # a test leaves it a config
        try:
            if runner._resume:
                check_resumed_classes(names, classes)
            elif not isinstance(runner.model, FullyShardedDataParallel):
                self._fit(checkpoint, unwrap(runner.model), classes, is_training)
        except CheckpointError as error:
            raise CheckpointError(f'{runner._load_from or "the checkpoint"}: {error}') from None

    def _fit(self, checkpoint: dict, model: nn.Module, classes: list[str] | None, is_training: bool) -> None:
        if is_training:
            state_dict, report = self.start_from(checkpoint, model, classes)
        else:
            checkpoint.update(adopt(checkpoint, model))
            state_dict, names, report = weights_of(checkpoint), names_in(checkpoint), ConversionReport()
            classes = self._names_of(classes)
            if names is not None and classes is not None:
                state_dict = self._classes_to_test(state_dict, model, names, classes, report)
            state_dict = check_fit(state_dict, model)
        if report != ConversionReport():
            print_log(f'Fitted the checkpoint to the model:\n{report}', logger='current')
        checkpoint['state_dict'] = state_dict

    def start_from(
        self, checkpoint: dict, model: nn.Module, classes: Sequence[str] | None
    ) -> tuple[dict[str, Tensor], ConversionReport]:
        """What a training of ``classes`` takes from a checkpoint, and how that was made.

        Args:
            checkpoint: as read; becomes one in our layout.
            model: initialised; not changed.
            classes: of the data; None: not known.
        """
        checkpoint.update(adopt(checkpoint, model))
        report = ConversionReport()
        names = self._names_of(classes)
        return fit(weights_of(checkpoint), model, report, names_in(checkpoint), names), report

    def _names_of(self, classes: Sequence[str] | None) -> list[str] | None:
        """The checkpoint's names of classes."""
        return None if classes is None else [self.class_names.get(name, name) for name in classes]

    @staticmethod
    def _classes_to_test(
        state_dict: dict[str, Tensor],
        model: nn.Module,
        names: Sequence[str],
        classes: list[str],
        report: ConversionReport,
    ) -> dict[str, Tensor]:
        """Weights with the rows of the classes that are tested, by name."""
        missing = [name for name in classes if name not in names]
        if not missing:
            return take_classes(state_dict, model, names, classes, report)
        if len(names) == len(classes):
            raise CheckpointError(
                f'its classes are {listed(names)}; the data are tested for {listed(missing)}, which it has not learnt. '
                'Correct metainfo=dict(classes=...), or say which rows are meant: '
                "default_hooks=dict(fit_checkpoint=dict(class_names={'class here': 'class in the checkpoint'}))"
            )
        return state_dict  # their number differs, which check_fit says


def hook_of(runner) -> FitCheckpointHook:
    """The runner's, or one without arguments."""
    return next((hook for hook in runner.hooks if isinstance(hook, FitCheckpointHook)), FitCheckpointHook())


def classes_of(runner) -> list[str] | None:
    """The classes of the data that the runner trains on or tests; None if not known."""
    for name in ('_train_loop', '_test_loop', '_val_loop'):
        loop = getattr(runner, name, None)
        if isinstance(loop, BaseLoop) and hasattr(loop, 'dataloader'):
            classes = metainfo_of(loop.dataloader.dataset).get('classes')
            return list(classes) if isinstance(classes, list | tuple) else None
    return None


def check_resumed_classes(names: tuple[str, ...] | None, classes: list[str] | None) -> None:
    """A training goes on with the labels that it had.

    Raises:
        CheckpointError: the same classes in another order, or another number of them.
    """
    if names is None or classes is None or list(names) == classes:
        return
    if len(names) != len(classes) or set(names) == set(classes):
        raise CheckpointError(
            f'the training to resume has the classes {listed(names)}, the config has {listed(classes)}. Write '
            f'metainfo=dict(classes={tuple(names)!r}), or start a new training from the checkpoint: load_from instead '
            'of --resume takes the rows by name'
        )
    renamed = ', '.join(f'{old!r} is now {new!r}' for old, new in zip(names, classes) if old != new)
    print_log(
        f'Classes have other names than before, and keep their labels: {renamed}',
        logger='current',
        level=logging.WARNING,
    )
