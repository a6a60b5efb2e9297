import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.hooks import Hook

from ..files import write_atomically
from ..registry import HOOKS

EXIT_CODE = os.EX_TEMPFAIL if hasattr(os, 'EX_TEMPFAIL') else 75  # sysexits.h: "try again later"
CHECKPOINT = 'interrupted.pth'


@HOOKS.register_module()
class SignalHook(Hook):
    """On SIGTERM, and on the first Ctrl-C, write a checkpoint and leave with exit code 75.

    Training ends after the iteration (with gradient accumulation: after the optimizer's step) in which the signal came;
    ``--resume`` goes on with the next one. The checkpoint is ``interrupted.pth`` in the work directory, and
    ``last_checkpoint`` points to it. A second Ctrl-C ends the program at once, without a checkpoint.

    Args:
        interval: with several processes, iterations after which they ask each other whether one got a signal.
    """

    priority = 'LOWEST'  # after the schedulers' step, which belongs into the checkpoint

    def __init__(self, interval: int = 10):
        self.interval = interval
        self.received = None
        self._previous = {}
        self._done = None  # iterations, when leaving

    def before_train(self, runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        loops = [runner.train_loop] if runner.val_loop is None else [runner.train_loop, runner.val_loop]
        for loop in loops:
            loop.dataloader.worker_init_fn = _LeaveSignalsToParent(loop.dataloader.worker_init_fn)

    def _receive(self, number, frame) -> None:
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            print('\nStopping after this iteration; press Ctrl-C again to stop at once', flush=True)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.optim_wrapper.should_update() and self._anyone_received(runner.iter):
            self._leave(runner, iteration=runner.iter + 1)  # the loop counts after its hooks

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._previous and self._anyone_received(batch_idx):
            self._leave(runner, iteration=runner.iter)

    def _anyone_received(self, iteration: int) -> bool:
        if not is_distributed():
            return self.received is not None
        if (iteration + 1) % self.interval:
            return False
        flag = torch.tensor(float(self.received is not None))
        all_reduce(flag, 'max')
        return bool(flag)

    def _leave(self, runner, iteration: int) -> None:
        self._done = iteration
        backend_args = dict(backend='mmdet_ddetr.atomic')
        path = Path(runner.work_dir, CHECKPOINT)
        reason = f'{self.received or "a signal to another process"}: stopped after iteration {iteration}'
        try:
            runner.save_checkpoint(runner.work_dir, CHECKPOINT, by_epoch=False, backend_args=backend_args)
            if is_main_process():
                write_atomically(path.with_name('last_checkpoint'), str(path).encode())
            runner.logger.warning(f'{reason}; --resume goes on from {path}')
        except OSError as error:
            runner.logger.error(f'{reason}; {path} COULD NOT BE WRITTEN: {error}')
        self.after_train(runner)
        barrier()  # launchers end all processes as soon as one has left
        raise SystemExit(EXIT_CODE)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._done is not None:  # the runners count on being asked within an iteration
            checkpoint['meta'].update(epoch=runner.epoch, iter=self._done)

    def after_train(self, runner) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class _LeaveSignalsToParent:
    """``worker_init_fn``: the one that the loader had, in a worker that only its parent can end.

    Ctrl-C and job schedulers signal workers as well, and without them the main process cannot finish its iteration.
    """

    def __init__(self, init: Callable[[int], None] | None):
        self.init = init

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, 'sigwaitinfo'):  # POSIX but macOS; elsewhere nothing tells who sent a signal
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_on_parents_sigterm, daemon=True).start()
        if self.init is not None:
            self.init(worker_id)


def _end_on_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
