import csv
import io
import logging
import math
import re
from contextlib import ExitStack
from pathlib import Path

from mmdet.datasets import VOCDataset
from mmdet.evaluation import CocoMetric, VOCMetric
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..files import write_if_possible
from ..registry import HOOKS
from .metric_names import COLUMNS, numbers, split

FOLDER = 'evaluation'  # in the work directory


@HOOKS.register_module()
class EvaluationTableHook(Hook):
    """A table of each evaluation, in the log and as ``evaluation/iter_<n>.csv`` (``evaluation/test.csv``).

    The first rows have the figures of all classes, a row for each validation set and kind of prediction: of COCO's
    metric AP over all IoUs, at 0.50 and 0.75, and of small, medium and large boxes, of another metric what it returns.
    Then comes one row a class, from the lowest AP to the highest. CocoMetric computes the classes' figures (this hook
    sets its ``classwise``), but it returns only one of each class and prints the others, so they are read from what it
    prints.
    """

    priority = 'LOW'  # after LoggerHook

    def __init__(self):
        self.classes = _ClassTables()
        self._listening = ExitStack()

    def before_val_epoch(self, runner) -> None:
        self._listen(runner, runner.val_evaluator)

    def before_test_epoch(self, runner) -> None:
        self._listen(runner, runner.test_evaluator)

    def _listen(self, runner, evaluator) -> None:
        self._listening.close()  # an evaluation before this one may have failed
        self.classes.rows = []
        sets = getattr(evaluator, 'dataset_prefixes', None) or [None] * len(evaluator.metrics)  # MultiDatasetsEvaluator
        for metric, name in zip(evaluator.metrics, sets):
            if isinstance(metric, CocoMetric):
                metric.classwise = True
                metric.compute_metrics = _Announced(metric, '/'.join(filter(None, (name, metric.prefix))), self.classes)
                self._listening.callback(vars(metric).pop, 'compute_metrics')
            elif isinstance(metric, VOCMetric):
                _name_own_classes(metric)
        runner.logger.addFilter(self.classes)
        self._listening.callback(runner.logger.removeFilter, self.classes)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._report(runner, metrics, f'iter_{runner.iter}')

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._report(runner, metrics, 'test')

    def _report(self, runner, metrics: dict | None, name: str) -> None:
        self._listening.close()
        if not is_main_process():
            return
        table = make_table(numbers(metrics), self.classes.rows)
        if len(table) == 1:
            return
        width = max(len(row[0]) for row in table)
        widths = [max(5, len(column)) for column in table[0][1:]]
        lines = [
            f'  {row[0]:{width}}  ' + '  '.join(f'{cell:>{w}}' for cell, w in zip(row[1:], widths)) for row in table
        ]
        path = Path(runner.work_dir, FOLDER, f'{name}.csv')
        runner.logger.info('\n'.join([f'{path}:', *lines]))
        text = io.StringIO()
        csv.writer(text, lineterminator='\n').writerows(table)
        write_if_possible(path, text.getvalue().encode())


def _name_own_classes(metric: VOCMetric) -> None:
    """In a folder that is called VOC2007 or VOC2012, VOCMetric prints VOC's class names, whatever the classes are."""
    meta = metric.dataset_meta or {}
    if tuple(meta.get('classes', ())) != VOCDataset.METAINFO['classes']:
        metric.dataset_meta = {**meta, 'dataset_type': None}


def make_table(metrics: dict[str, float], classes: list[tuple[str, str, dict[str, float]]]) -> list[list[str]]:
    """The header and a row for all classes and for each.

    Args:
        metrics: results of an evaluation; the figures of single classes among them are left out.
        classes: what was measured, class name and figures by column, of each class.
    """
    groups = {}
    of_a_class = {f'{name}_precision' for _, name, _ in classes}
    for key, value in metrics.items():
        group, column = split(key)
        if not any(key == name or key.endswith(f'/{name}') for name in of_a_class):
            groups.setdefault(group, {})[column] = value
    rows = [(f'all ({group})' if group else 'all', figures) for group, figures in groups.items()]
    several = len({group for group, _, _ in classes}) > 1
    rows += [
        (f'{name} ({group})' if several else name, figures)
        for group, name, figures in sorted(classes, key=lambda row: (math.isnan(row[2]['AP']), row[2]['AP']))
    ]
    found = list(dict.fromkeys(column for _, figures in rows for column in figures))
    known = [column for column in COLUMNS.values() if column in found]
    columns = [*known, *(column for column in found if column not in known)]
    return [
        ['class', *columns],
        *([name, *(_cell(column, figures.get(column)) for column in columns)] for name, figures in rows),
    ]


def _cell(column: str, value: float | None) -> str:
    """COCO's -1 is no figure: there are no such boxes."""
    if value is None or math.isnan(value) or (value == -1 and column in COLUMNS.values()):
        return '-'
    return f'{value:.3f}'


class _Announced:
    """A metric's ``compute_metrics`` that says whose tables come now."""

    def __init__(self, metric: CocoMetric, group: str, tables: '_ClassTables'):
        self.compute_metrics, self.group, self.tables = metric.compute_metrics, group, tables

    def __call__(self, results: list) -> dict:
        self.tables.group = self.group
        return self.compute_metrics(results)


class _ClassTables(logging.Filter):
    """Takes CocoMetric's tables of the classes out of the log."""

    def __init__(self):
        super().__init__()
        self.group = self.kind = ''
        self.rows = []  # what was measured, class name, figures

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg).strip()
        if kind := re.fullmatch(r'Evaluating (\w+)\.\.\.', text):
            self.kind = kind[1]
        lines = text.splitlines()
        if len(lines) < 2 or not re.match(r'\| category +\| mAP +\| mAP_50 ', lines[1]):
            return True
        group = '/'.join(filter(None, (self.group, self.kind)))
        for line in lines[3:-1]:
            cells = [cell.strip() for cell in line.strip('|').rsplit('|', len(COLUMNS))]
            if not cells[1]:  # of a name with line breaks
                self.rows[-1] = (group, f'{self.rows[-1][1]}\n{cells[0]}', self.rows[-1][2])
                continue
            self.rows.append((group, cells[0], dict(zip(COLUMNS.values(), map(float, cells[1:])))))
        return False
