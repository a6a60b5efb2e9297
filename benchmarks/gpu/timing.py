"""How the GPU benchmarks measure. Without a GPU the same functions time the CPU, so that the scripts can be tried."""

import os
import statistics
import sys
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]
WARM_UP = 5
CYCLES = 2_000_000_000  # of a second, at least


def on_gpu() -> bool:
    return torch.cuda.is_available()


def device() -> str:
    return 'cuda' if on_gpu() else 'cpu'


def device_is_broken() -> bool:
    """Whether a kernel has gone wrong, at a wrong address, say: then every later call of this process fails."""
    try:
        if on_gpu():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def start_again() -> None:
    """Replace this process by a new one with a sound device, which goes on after what its JSON file has already."""
    print('The device has to be started again.', flush=True)
    os.execv(sys.executable, [sys.executable, *[a for a in sys.argv if a != '--go-on'], '--go-on'])


def l2_bytes() -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size


def device_times(step: Step, repeats: int = 50, cold: bool = False) -> list[float]:
    """Seconds of each repeat on the device, by CUDA events.

    Args:
        cold: write more than the L2 cache holds before each repeat, outside of what is timed. Without it, the inputs
            lie in the cache as far as they fit.
    """
    for _ in range(WARM_UP):
        step()
    if not on_gpu():
        return [_wall(step) for _ in range(repeats)]
    torch.cuda.synchronize()
    host = _wall(step)  # the device sleeps until the host has launched everything: no launch is waited for
    flush = torch.empty(4 * l2_bytes(), dtype=torch.int8, device='cuda') if cold else None
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    torch.cuda.synchronize()
    torch.cuda._sleep(int(CYCLES * min(2 * repeats * host, 0.5)))
    for start, end in events:
        if cold:
            flush.zero_()
        start.record()
        step()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def host_times(step: Step, repeats: int = 200) -> list[float]:
    """Seconds until each call returns, with the device busy: what Python and PyTorch take for a call."""
    for _ in range(WARM_UP):
        step()
    times = []
    for start in range(0, repeats, 20):  # few enough not to fill the device's queue, where a call would wait
        if on_gpu():
            torch.cuda.synchronize()
            torch.cuda._sleep(CYCLES // 100)
        times += [_wall(step) for _ in range(min(20, repeats - start))]
    if on_gpu():
        torch.cuda.synchronize()
    return times


def _wall(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def copy_bandwidth() -> float:
    """Bytes a second of a large copy on the device, read and written ones counted."""
    source = torch.empty(2**30 if on_gpu() else 2**26, dtype=torch.int8, device=device()).fill_(1)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(device_times(lambda: target.copy_(source), 20))


def summary(samples: list[float]) -> dict[str, float]:
    """Median, minimum and number of the repeats; microseconds."""
    return dict(us=statistics.median(samples) * 1e6, min_us=min(samples) * 1e6, repeats=len(samples))
