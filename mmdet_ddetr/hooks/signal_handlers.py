"""Signal handlers of one process alone: whatever it starts has those that were there before.

A forked process inherits Python's handlers. A pool's workers, say, could not be ended: their SIGTERM would ask them to
stop after the training iteration that they do not have.
"""

import functools
import os
import signal
import subprocess
import threading
from collections.abc import Callable

_before = {}  # number: the handler that was there before this process set its own
_blocked = set()  # signals that this process takes by sigwaitinfo
_fork = threading.local()


def install(number: int, handler: Callable) -> None:
    """Set a signal's handler, in the main thread. Processes that this one forks or runs do not have it."""
    _before.setdefault(number, signal.getsignal(number) or signal.SIG_DFL)  # None: set by C code
    signal.signal(number, handler)


def restore() -> None:
    """Take back all that :func:`install` did."""
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()


def ignore(number: int, frame) -> None:
    """A handler; other than SIG_IGN, a program that is run does not inherit it."""


def obey_parent_alone() -> None:
    """Ignore SIGINT, and SIGTERM unless the parent sends it. For a data loader's worker, in its main thread.

    Ctrl-C and job schedulers signal workers as well, and without them the main process cannot finish its iteration.
    """
    install(signal.SIGINT, ignore)
    if not hasattr(signal, 'sigwaitinfo'):  # POSIX but macOS; elsewhere nothing tells who sent a signal
        return
    install(signal.SIGTERM, ignore)
    _blocked.add(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, _blocked)
    threading.Thread(target=_end_on_parents_sigterm, daemon=True).start()
    subprocess.Popen.__init__ = _unblocked(subprocess.Popen.__init__)  # programs inherit what is blocked


def _end_on_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _unblocked(start: Callable) -> Callable:
    """``start``, called while nothing of ``_blocked`` is blocked."""

    @functools.wraps(start)
    def started(*args, **kwargs):
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, _blocked)
        try:
            return start(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return started


def _before_fork() -> None:
    """From here until the child has its handlers, signals wait: it may be ended as soon as it is there."""
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _before)


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _after_fork_in_child() -> None:
    restore()
    mask = _fork.mask - _blocked
    _blocked.clear()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
