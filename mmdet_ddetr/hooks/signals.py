import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.hooks import Hook

from ..files import write_atomically
from ..registry import HOOKS
from . import signal_handlers
from .last_checkpoint import INTERRUPTED, LAST

EXIT_CODE = os.EX_TEMPFAIL if hasattr(os, 'EX_TEMPFAIL') else 75  # sysexits.h: "try again later"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_SIGNAL = 1.0  # seconds in which a signal comes by all its ways


class Interrupted(SystemExit):
    """A training that Ctrl-C has ended, in a program that goes on to evaluate it.

    Args:
        iteration: how many are done.
    """

    def __init__(self, iteration: int):
        super().__init__(EXIT_CODE)
        self.iteration = iteration


@HOOKS.register_module()
class SignalHook(Hook):
    """On SIGTERM, and on the first Ctrl-C, write a checkpoint and leave with exit code 75.

    Training ends after the iteration (with gradient accumulation: after the optimizer's step) in which the signal came;
    ``--resume`` goes on with the next one. The checkpoint is ``interrupted.pth`` in the work directory, and
    ``last_checkpoint`` points to it. A second signal ends the program at once, without a checkpoint; one that is being
    written is finished. Within a second after the first it counts as the same, because launchers pass on what the
    scheduler sends to every process anyway.
    Processes that are started meanwhile, by a metric or a data set, have the handlers that were there before.

    Args:
        interval: with several processes, iterations after which they ask each other whether one got a signal.
        finish: on Ctrl-C, raise ``Interrupted`` after the iteration, for a program that evaluates what is there;
            an evaluation is finished, and the training ends with it.
    """

    priority = 'LOWEST'  # after the schedulers' step, which belongs into the checkpoint

    def __init__(self, interval: int = 10, finish: bool = False):
        self.interval = interval
        self.finish = finish
        self.received = None
        self._training = False
        self._done = None  # iterations, when leaving

    def before_train(self, runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        self._training = True
        for number in SIGNALS:
            signal_handlers.install(number, self._receive)
        loops = [runner.train_loop] if runner.val_loop is None else [runner.train_loop, runner.val_loop]
        for loop in loops:
            loop.dataloader.worker_init_fn = _LeaveSignalsToParent(loop.dataloader.worker_init_fn)

    def _receive(self, number, frame) -> None:
        self.received = signal.Signals(number).name
        for other in SIGNALS:
            signal_handlers.install(other, signal_handlers.ignore)
        what = 'stopping after this iteration'
        if self._finishes:
            what = 'ending the training after this iteration, then evaluating what is there'
        os.write(2, f'\n{self.received}: {what}; once more stops at once\n'.encode())
        time.sleep(SAME_SIGNAL)
        signal_handlers.install(signal.SIGTERM, signal.SIG_DFL)
        signal_handlers.install(signal.SIGINT, signal.default_int_handler)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.optim_wrapper.should_update() and self._anyone_received(runner.iter):
            self._leave(runner, iteration=runner.iter + 1)  # the loop counts after its hooks

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._training and not self._finishes and self._anyone_received(batch_idx):
            self._leave(runner, iteration=runner.iter)

    def after_val_epoch(self, runner, metrics=None) -> None:
        if self._training and self._finishes:
            self._save(runner, iteration=runner.iter)
            runner.train_loop.stop_training = True

    @property
    def _finishes(self) -> bool:
        return self.finish and self.received == 'SIGINT'

    def _anyone_received(self, iteration: int) -> bool:
        if not is_distributed():
            return self.received is not None
        if (iteration + 1) % self.interval:
            return False
        flag = torch.tensor(float(self.received is not None))
        all_reduce(flag, 'max')
        return bool(flag)

    def _leave(self, runner, iteration: int) -> None:
        self._save(runner, iteration)
        self.after_train(runner)
        barrier()  # launchers end all processes as soon as one has left
        raise Interrupted(iteration) if self._finishes else SystemExit(EXIT_CODE)

    def _save(self, runner, iteration: int) -> None:
        self._done = iteration
        for number in SIGNALS:  # a scheduler that asks again must not cost the checkpoint that it asked for
            signal_handlers.install(number, signal_handlers.ignore)
        backend_args = dict(backend='mmdet_ddetr.atomic')
        path = Path(runner.work_dir, INTERRUPTED)
        reason = f'{self.received or "a signal to another process"}: stopped after iteration {iteration}'
        try:
            runner.save_checkpoint(runner.work_dir, INTERRUPTED, by_epoch=False, backend_args=backend_args)
            if is_main_process():
                write_atomically(path.with_name(LAST), str(path).encode())
            runner.logger.warning(f'{reason}; --resume goes on from {path}')
        except OSError as error:
            runner.logger.error(f'{reason}; {path} COULD NOT BE WRITTEN: {error}')
        finally:
            self._done = None

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._done is not None:  # the runners count on being asked within an iteration
            checkpoint['meta'].update(epoch=runner.epoch, iter=self._done)

    def after_train(self, runner) -> None:
        if self._training:
            self._training = False
            signal_handlers.restore()


class _LeaveSignalsToParent:
    """``worker_init_fn``: the one that the loader had, in a worker that only its parent can end."""

    def __init__(self, init: Callable[[int], None] | None):
        self.init = init

    def __call__(self, worker_id: int) -> None:
        signal_handlers.obey_parent_alone()
        if self.init is not None:
            self.init(worker_id)
