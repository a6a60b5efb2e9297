import ctypes
from collections.abc import Callable
from functools import partial

import psutil
from mmengine.hooks import Hook

from ..registry import HOOKS

MIB = 2**20


@HOOKS.register_module()
class MemoryHook(Hook):
    """Keeps the host memory of a long training flat, and shows it in the log.

    mmengine remembers every value that it ever logged, up to a million of each: with the thirty losses and rates of a
    DETR-like model these are 500 bytes an iteration, copied in every iteration, and saved in every checkpoint. Nothing
    reads more than the log's averaging window.

    On a CPU, every new image shape leaves small buffers of oneDNN between the large ones of the tensors, and glibc
    keeps what is free between them: it is asked to give that back (``malloc_trim``, where the C library has it).

    Beside the peak of GPU memory, which mmengine logs as ``memory``, the log gets ``host_memory``, the resident memory
    of this process, and ``worker_memory``, what its data loader workers hold for themselves, both in MiB.

    Args:
        interval: iterations between two looks at the memory, each of which takes some milliseconds.
        max_history: values of each kind to remember.
    """

    def __init__(self, interval: int = 50, max_history: int = 1000):
        self.interval = interval
        self.max_history = max_history
        self.process = psutil.Process()
        self.trim = _malloc_trim()

    def before_val_epoch(self, runner) -> None:
        self.trim()  # workers that start now would keep a copy of what is free

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        hub = runner.message_hub
        hub.update_scalar('train/host_memory', self.process.memory_info().rss / MIB)
        hub.update_scalar('train/worker_memory', sum(map(_own_memory, self.process.children(recursive=True))) / MIB)
        length = max(self.max_history, runner.log_processor.window_size)
        for history in hub.log_scalars.values():
            history.max_length = length
        self.trim()


def _malloc_trim() -> Callable[[], object]:
    """glibc's, or nothing where the C library is another."""
    try:
        return partial(ctypes.CDLL(None).malloc_trim, 0)
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return lambda: None


def _own_memory(process: psutil.Process) -> int:
    """Bytes that would be free without the process; workers share the rest with their parent."""
    try:
        return process.memory_full_info().uss
    except psutil.Error:  # it has just ended
        return 0
