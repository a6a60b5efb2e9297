import io
import re
from pathlib import Path

from matplotlib.figure import Figure
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..files import write_if_possible
from ..registry import HOOKS
from .metric_names import numbers

LOSSES = 'curve/losses'
METRICS = 'curve/metrics'
AP = re.compile(r'(^|[/_])m?AP([_@]?[\dsml.]+)?$')


@HOOKS.register_module()
class LearningCurvesHook(Hook):
    """Draws losses and figures over the iterations into ``curves.png``, anew after each evaluation and at the end.

    The points are part of the checkpoint, so a resumed training continues its curves.

    Args:
        interval: iterations that one point of a loss averages; up to the first of them, ten points average a tenth.
        losses: regular expression of the losses to draw; by default the total and those of the last layer.
        metrics: regular expression of the figures to draw; by default AP of any name, or, where there is none, all.
    """

    def __init__(self, interval: int = 50, losses: str = r'^(enc_)?loss[^.]*$', metrics: str | None = None):
        self.interval, self.first_interval = interval, max(interval // 10, 1)
        self.losses = re.compile(losses)
        self.metrics = None if metrics is None else re.compile(metrics)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        interval = self.first_interval if runner.iter + 1 <= self.interval else self.interval
        if self.every_n_train_iters(runner, interval) or runner.iter + 1 == runner.max_iters:
            means = {
                key.removeprefix('train/'): history.mean(interval)
                for key, history in runner.message_hub.log_scalars.items()
                if key.startswith('train/') and self.losses.search(key.removeprefix('train/'))
            }
            self._add(runner, LOSSES, runner.iter + 1, means)

    def after_val_epoch(self, runner, metrics=None) -> None:
        values = numbers(metrics)
        chosen = {key: value for key, value in values.items() if (self.metrics or AP).search(key)}
        self._add(runner, METRICS, runner.iter, chosen or ({} if self.metrics else values))
        self._draw(runner)

    def after_train(self, runner) -> None:
        self._draw(runner)

    @staticmethod
    def _add(runner, name: str, iteration: int, values: dict) -> None:
        """Append a point to each curve: {name: [[iterations], [values]]}, plain numbers for the checkpoint's sake."""
        curves = runner.message_hub.get_info(name, {})
        for key, value in values.items():
            iterations, points = curves.setdefault(key, [[], []])
            iterations.append(int(iteration))
            points.append(float(value))
        runner.message_hub.update_info(name, curves)

    def _draw(self, runner) -> None:
        losses, metrics = (runner.message_hub.get_info(name, {}) for name in (LOSSES, METRICS))
        if not is_main_process() or not (losses or metrics):
            return
        figure = Figure(figsize=(12, 4.5), layout='constrained')
        left, right = figure.subplots(1, 2)
        for axes, curves, title in ((left, losses, 'loss'), (right, metrics, 'evaluation')):
            for name, (iterations, values) in curves.items():
                axes.plot(iterations, values, label=name, marker='.' if len(values) < 20 else None)
            axes.set(xlabel='iteration', title=title)
            axes.set_xlim(left=0)
            axes.grid(alpha=0.3)
            if curves:
                axes.legend(fontsize='small', loc='upper left', bbox_to_anchor=(1, 1))  # beside it, in nobody's way
        left.set_yscale('log')
        if all(value >= 0 for _, values in metrics.values() for value in values):
            right.set_ylim(bottom=0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', dpi=100)
        write_if_possible(Path(runner.work_dir, 'curves.png'), buffer.getvalue())
