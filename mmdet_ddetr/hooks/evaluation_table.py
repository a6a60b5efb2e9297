import csv
import io
import logging
import re
from pathlib import Path

from mmdet.evaluation import CocoMetric
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..files import write_if_possible
from ..registry import HOOKS

COLUMNS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
HEADER = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
FOLDER = 'evaluation'  # in the work directory


@HOOKS.register_module()
class EvaluationTableHook(Hook):
    """A table of each evaluation, in the log and as ``evaluation/iter_<n>.csv`` (``evaluation/test.csv``).

    The first row is the AP of all classes, over all IoUs, at 0.50 and 0.75, and of small, medium and large boxes; then
    one row a class, from the lowest AP to the highest. CocoMetric computes the classes' figures (this hook sets its
    ``classwise``), but it returns only one of each class and prints the others, so they are read from what it prints.
    """

    priority = 'LOW'  # after LoggerHook

    def __init__(self):
        self.classes = _ClassTable()

    def before_val_epoch(self, runner) -> None:
        self._listen(runner, runner.val_evaluator)

    def before_test_epoch(self, runner) -> None:
        self._listen(runner, runner.test_evaluator)

    def _listen(self, runner, evaluator) -> None:
        self.classes.rows = []
        for metric in evaluator.metrics:
            if isinstance(metric, CocoMetric):
                metric.classwise = True
        runner.logger.addFilter(self.classes)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._report(runner, metrics or {}, f'iter_{runner.iter}')

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._report(runner, metrics or {}, 'test')

    def _report(self, runner, metrics: dict, name: str) -> None:
        runner.logger.removeFilter(self.classes)
        if not is_main_process():
            return
        rows = [
            [
                f'all ({key.removesuffix("_mAP")})',
                *(f'{metrics.get(f"{key[:-4]}_{c}", float("nan")):.3f}' for c in COLUMNS),
            ]
            for key in metrics
            if key.endswith('_mAP')
        ]
        rows += sorted(self.classes.rows, key=lambda row: float(row[1]))
        if not rows:
            return
        table = [
            ('class', *HEADER),
            *([cell.replace('nan', '-').replace('-1.000', '-') for cell in row] for row in rows),
        ]
        width = max(len(row[0]) for row in table)
        lines = [f'  {row[0]:{width}}  ' + '  '.join(f'{cell:>5}' for cell in row[1:]) for row in table]
        path = Path(runner.work_dir, FOLDER, f'{name}.csv')
        runner.logger.info('\n'.join([f'{path}:', *lines]))
        text = io.StringIO()
        csv.writer(text, lineterminator='\n').writerows(table)
        write_if_possible(path, text.getvalue().encode())


class _ClassTable(logging.Filter):
    """Takes CocoMetric's table of the classes out of the log."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def filter(self, record: logging.LogRecord) -> bool:
        lines = str(record.msg).strip().splitlines()
        if len(lines) < 2 or not re.match(r'\| category +\| mAP +\| mAP_50 ', lines[1]):
            return True
        for line in lines[3:-1]:
            cells = [cell.strip() for cell in line.strip('|').rsplit('|', len(COLUMNS))]
            self.rows.append([cells[0], *(f'{float(cell):.3f}' for cell in cells[1:])])
        return False
