"""How long the threads of PyTorch's operators wait awake for the next one."""

import os
import sys

ROUNDS = '10000'  # some 30 us


def wait_briefly() -> None:
    """Let GNU OpenMP, which PyTorch's wheels for Linux use, look ``ROUNDS`` times for work before a thread sleeps.

    Small models have an operator every 50 us. Threads that sleep at once wake too late for it: a training step takes
    1.8 times as long. Threads that wait for long, which is the default, hold up whatever else runs on the processor,
    and a data loader is enough: beside one busy process, a step takes more than 15 times as long. Settings of the
    user's own stay, and where PyTorch is imported already, it is too late. Processes that this one starts inherit it.
    """
    if 'torch' not in sys.modules and not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & os.environ.keys():
        os.environ['GOMP_SPINCOUNT'] = ROUNDS
