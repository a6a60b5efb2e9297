import logging
import sys
import time
from collections import deque
from statistics import median

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from tqdm import tqdm

from ..loops import TimedTrainLoop
from ..registry import HOOKS
from .metric_names import main_figure, numbers, split


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """One line that shows how far training is, instead of pages of log.

    On a terminal it is a bar; elsewhere (a file, CI) a plain line now and then. Either goes to stderr. The remaining
    time counts the evaluations to come. While training runs, the log's messages below WARNING go to the log file only,
    where those of LoggerHook and the evaluation tables are found as ever.

    Args:
        metric (str, optional): The figure of the last evaluation to show; by default the one that counts most.
        interval (float): Seconds between two lines where stderr is no terminal.
    """

    priority = 'LOW'  # after the hooks that compute what is shown

    def __init__(self, metric: str | None = None, interval: float = 30):
        self.metric = metric
        self.interval = interval
        self.last_metric = None
        self.bar = None
        self._iteration_times = deque(maxlen=100)
        self._evaluation_time = 0.0
        self._muted = []

    def before_train(self, runner) -> None:
        if not is_main_process():
            return
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                self._muted.append((handler, handler.level))
                handler.setLevel(max(handler.level, logging.WARNING))
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=runner.max_iters,
                initial=runner.iter,
                dynamic_ncols=True,
                bar_format='{percentage:3.0f}% {bar} {desc}',
            )
        self._start = self._last_line = time.monotonic()
        self._done = runner.iter

    def before_train_epoch(self, runner) -> None:
        self._tick = time.monotonic()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not is_main_process():
            return
        now = time.monotonic()
        self._iteration_times.append(now - self._tick)
        self._tick = now
        self._done = runner.iter + 1  # the loop counts an iteration after this hook
        if self.bar is not None:
            self.bar.total = runner.max_iters  # of a training by the clock it changes
            self.bar.set_description_str(self._status(runner), refresh=False)
            self.bar.update()
        elif now - self._last_line >= self.interval:
            self._print_line(runner)

    def before_val(self, runner) -> None:
        self._val_start = time.monotonic()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.bar is not None:
            self.bar.set_description_str(f'evaluating {batch_idx + 1}/{len(runner.val_dataloader)}')

    def after_val_epoch(self, runner, metrics=None) -> None:
        values = numbers(metrics)
        key = self.metric or (main_figure(values) if values else None)
        if key in values:
            self.last_metric = f'{split(key)[1]} {values[key]:.3f}'

    def after_val(self, runner) -> None:
        self._tick = time.monotonic()
        self._evaluation_time = self._tick - self._val_start
        if self.bar is None and self._muted:  # within training
            self._print_line(runner)

    def after_train(self, runner) -> None:
        if self.bar is not None:
            self.bar.set_description_str(self._status(runner))
            self.bar.close()
            self.bar = None
        for handler, level in self._muted:
            handler.setLevel(level)
        self._muted.clear()

    def _print_line(self, runner) -> None:
        self._last_line = time.monotonic()
        print(self._status(runner), file=sys.stderr, flush=True)

    def _status(self, runner) -> str:
        loop = runner.train_loop
        parts = [f'iteration {self._done}/{loop.max_iters}']
        if isinstance(loop, EpochBasedTrainLoop):
            parts.insert(0, f'epoch {-(-self._done // len(loop.dataloader))}/{loop.max_epochs}')
        if 'train/loss' in runner.message_hub.log_scalars:
            parts.append(f'loss {runner.message_hub.get_scalar("train/loss").mean(20):.2f}')
        if self.last_metric is not None:
            parts.append(self.last_metric)
        parts.append(f'{_clock(time.monotonic() - self._start)} elapsed')
        if isinstance(loop, TimedTrainLoop):
            parts.append(f'{_clock(max(loop.budget.left, 0))} left')
        elif self._iteration_times:
            left = (loop.max_iters - self._done) * median(self._iteration_times)
            left += evaluations_left(loop) * self._evaluation_time
            parts.append(f'{_clock(left)} left')
        return ', '.join(parts)


def evaluations_left(loop) -> int:
    """How many evaluations mmengine's train loop, by epoch or by iteration, will still run (no dynamic intervals)."""
    if loop.runner.val_loop is None:
        return 0
    # both count a step after its hooks and before its evaluation
    done, last = (loop.epoch, loop.max_epochs) if isinstance(loop, EpochBasedTrainLoop) else (loop.iter, loop.max_iters)
    before_first = max(done, loop.val_begin - 1)
    if before_first >= last:
        return 0
    return last // loop.val_interval - before_first // loop.val_interval + (last % loop.val_interval != 0)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
