"""What the benchmarks share: times of peers taken in turns, peak memory, the machine's name, tables."""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

Step = Callable[[], object]


def times(
    steps: Mapping[str, Step], seconds: float = 2.0, device: str = 'cpu', clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each step, the peers in turns, so that what disturbs the machine disturbs all of them.

    Args:
        steps: what to run, by peer.
        seconds: how long each peer runs in all; it runs at least three times.
        device: where the work ends; an accelerator is waited for.
        clock: ``time.thread_time`` tells what one thread takes on a machine that has other work, too.

    Returns:
        The times by peer, without the first run of each.
    """
    repeats = {}
    for name, step in steps.items():
        _timed(step, 1, device, clock)
        first = _timed(step, 1, device, clock)
        repeats[name] = max(1, round(0.02 / first)) if first < 0.02 else 1  # a clock reading per 20 ms
    result = {name: [] for name in steps}
    while any(sum(t) * repeats[name] < seconds or len(t) < 3 for name, t in result.items()):
        for name, step in steps.items():
            if sum(result[name]) * repeats[name] < seconds or len(result[name]) < 3:
                result[name].append(_timed(step, repeats[name], device, clock))
    return result


def _timed(step: Step, repeats: int, device: str, clock: Callable[[], float]) -> float:
    gc.disable()
    _wait_for(device)
    start = clock()
    for _ in range(repeats):
        step()
    _wait_for(device)
    elapsed = clock() - start
    gc.enable()
    return elapsed / repeats


def _wait_for(device: str):
    if device != 'cpu':
        torch.accelerator.synchronize()


def peak_memory(make_step: Callable[..., Step], *arguments, device: str = 'cpu') -> float:
    """MB that ``make_step(*arguments)()`` needs beyond what its inputs took, in a process of its own (Linux on a CPU).

    Both the function and its arguments are sent to that process, so they must be picklable.

    Raises:
        BrokenProcessPool: the process died.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(_peak_memory, make_step, arguments, device).result()


def _peak_memory(make_step, arguments, device):
    step = make_step(*arguments)
    step()  # loads libraries and fills caches
    if device == 'cpu':
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = _resident('VmRSS')
        keep = step()
        return _resident('VmHWM') - before
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    keep = step()  # noqa: F841  (alive until the peak is read)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _resident(field: str) -> float:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def machine(device: str) -> str:
    """The device in words, with the versions that matter."""
    from mmdet_ddetr.apis.device_name import device_name

    return f'{device_name(device)}; torch {torch.__version__}; {time.strftime("%Y-%m-%d")}'


def build_model(config: dict) -> torch.nn.Module:
    """A model with initialised weights, none of them downloaded.

    Args:
        config: of the model, with the types of mmdet's registry. Changed in place.
    """
    from mmdet.registry import MODELS
    from mmengine.logging import MMLogger

    from mmdet_ddetr.testing import without_download

    model = MODELS.build(without_download(config))
    MMLogger.get_current_instance().setLevel('WARNING')  # else the next line tells of every parameter
    model.init_weights()  # until then some parameters of mmdet's models are whatever lies in memory
    return model


def milliseconds(samples: Sequence[float]) -> str:
    """Minimum (median) in ms."""
    low, middle = min(samples) * 1e3, statistics.median(samples) * 1e3
    digits = 3 if low < 1 else 2 if low < 10 else 1 if low < 100 else 0
    return f'{low:.{digits}f} ({middle:.{digits}f})'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ['--'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
