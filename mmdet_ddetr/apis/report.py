"""report.html: what a training was given, what it learnt, where it errs, and what to do with it, on one page."""

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from mmengine.runner import Runner

from ..datasets import CocoFolder, read_coco
from ..datasets.image_file import SUFFIXES
from ..datasets.report import counted, printable
from ..datasets.summary import class_table, split_table
from ..evaluation.matching import IOU, USUAL
from ..evaluation.precision import COLUMNS
from ..hooks.learning_curves import LOSSES, METRICS
from ..hooks.metric_names import split
from ..loops import TimedTrainLoop
from .charts import line_chart, sparkline
from .data_check import DataCheck
from .device_name import device_name
from .page import count_table, findings, html_table, named, table, text, write_page
from .pictures import palette
from .report_commands import commands
from .report_mistakes import Pictures, confusion, confusions, kinds_of_mistakes
from .report_results import Results, figures_on_val, results_of

MAX_SOURCES = 4  # folders or images in a command
MAX_CURVES = 8  # of classes, in the chart of precision and recall
SIZES = 'small: up to 32 x 32 px, medium: up to 96 x 96 px, large: above, in px of the image file'


@dataclass
class Training:
    """What is there when a training has been tested.

    Attributes:
        runner: after its test, with :func:`keep_evaluation` before.
        data: as it was found.
        folder: as it was trained on.
        classes: names, in the order of the labels.
        metrics: of the test.
        checkpoint: that was tested.
        config: file.
        options: of the command that are not at their defaults.
        minutes: from its start to the end of the test.
        ended: a sentence on why it ended early, or ''.
    """

    runner: Runner
    data: DataCheck
    folder: CocoFolder
    classes: Sequence[str]
    metrics: Mapping[str, float]
    checkpoint: Path
    config: Path
    options: Mapping
    minutes: float
    ended: str = ''

    @property
    def split(self) -> str:
        """Name of the one that was tested."""
        return self.folder.test.name

    @cached_property
    def results(self) -> Results | None:
        """Of the test; None: its evaluator has no CocoMetric of boxes."""
        return results_of(self.runner, self.classes)

    @property
    def score(self) -> float:
        """From which detections are shown."""
        return USUAL if self.results is None else self.results.outcome.score


def write_report(training: Training, path: str | Path) -> Path:
    """Write the page; it needs no other file and no network.

    Args:
        path: of the HTML file.
    """
    results = training.results
    on_val = figures_on_val(training.runner, training.checkpoint) if training.folder.has_test else {}
    name = training.data.folder.root.resolve().name
    values = dict(
        title=text(f'{name}: a detector of {counted(len(training.classes), "class", "classes")}'),
        subtitle=_subtitle(training),
        ended=f'<p class="level warning wide-level">{text(training.ended)}</p>' if training.ended else '',
        tiles=_tiles(training, results),
        figures=_figures(training, results, on_val),
        curves=_curves(training.runner),
        classes=_classes(training, results, on_val),
        classes_on_val=_classes_on_val(training, on_val),
        data=_data(training.data),
        speed=_speed(training),
        where=text(os.getcwd()),
        **_of_results(training, results),
    )
    return write_page(path, 'report.html', values)


def _of_results(training: Training, results: Results | None) -> dict[str, str]:
    if results is None:
        missing = "<p>Not measured: the config's test_evaluator has no CocoMetric of boxes.</p>"
        parts = dict.fromkeys(('samples', 'recall', 'mistakes', 'false_positives', 'misses'), missing)
        return dict(parts, score='', why_score='', part='', commands=_commands(training, None))
    seen, pictures = len(results.images), Pictures(results, training.folder.test.image_dir)
    return dict(
        score=f'{results.outcome.score:.2f}',
        why_score='where precision and recall are balanced best (the highest F1)'
        if (results.outcome.matches.object_of >= 0).any()
        else 'the usual one, as nothing is right at any',
        part='' if seen == results.of_images else f' Of {seen} of the {results.of_images} images.',
        samples=pictures.samples(),
        recall=_recall(results),
        mistakes=f'<div class="beside"><div class="wide">{confusion(results)}</div>'
        f'<div>{kinds_of_mistakes(results)}{confusions(results)}</div></div>',
        false_positives=pictures.false_positives() or '<p>There are none.</p>',
        misses=pictures.misses() or '<p>There are none.</p>',
        commands=_commands(training, results),
    )


# -------------------------------------------------------------------------------------------------------------- figures
def _subtitle(training: Training) -> str:
    runner, options = training.runner, training.options
    loader = runner.cfg.train_dataloader
    parts = [
        Path(str(options.get('config') or runner.cfg.filename or '')).stem,
        f'{runner.iter} iterations of {counted(loader.batch_size, "image")}',
        Path(training.checkpoint).name,
        time.strftime('%Y-%m-%d %H:%M'),
    ]
    return text(' · '.join(filter(None, parts)))


def _tiles(training: Training, results: Results | None) -> str:
    """The figures to see first."""
    images = {row[0]: row[1] for row in split_table(training.data.reports)[1:]}
    n_images = ' / '.join(images.values())
    minutes = _minutes(training)
    tiles = [
        (_figure(_overall(training, results, 'AP')), f'AP on {training.split}'),
        (_figure(_overall(training, results, 'AP50')), f'AP50 on {training.split}'),
        (f'{minutes:.1f} min' if minutes < 120 else f'{minutes / 60:.1f} h', 'training and test'),
        (n_images, f'images: {" / ".join(images)}'),
    ]
    return ''.join(f'<div class="tile"><b>{text(value)}</b>{text(name)}</div>' for value, name in tiles)


def _minutes(training: Training) -> float:
    """With those of the processes that a training by the clock was resumed from."""
    loop = training.runner.train_loop
    return loop.budget.elapsed / 60 if isinstance(loop, TimedTrainLoop) and loop.budget else training.minutes


def _overall(training: Training, results: Results | None, column: str) -> float:
    if results is not None:
        return results.figure(column)
    names = {split(key)[1]: value for key, value in training.metrics.items() if isinstance(value, float)}
    return names.get(column, math.nan)


def _figures(training: Training, results: Results | None, on_val: Mapping) -> str:
    rows = [['split', *COLUMNS]]
    if None in on_val:
        rows.append(['val', *(_figure(on_val[None][column]) for column in COLUMNS)])
    rows.append([training.split, *(_figure(_overall(training, results, column)) for column in COLUMNS)])
    notes = []
    if not training.folder.has_test:
        notes.append('There is no test split: val was tested, on which the best checkpoint was chosen, too.')
    elif None in on_val:
        notes.append('val chose the checkpoint; test had no part in the training.')
    notes.append(f'AP: mean precision over IoU 0.50 to 0.95. APs, APm, APl: by size of box; {SIZES}. -: no such boxes.')
    return f'<div class="wide">{table(rows)}</div><p class="soft">{text(" ".join(notes))}</p>'


def _classes(training: Training, results: Results | None, on_val: Mapping) -> str:
    """AP of each class; precision and recall from the page's score on."""
    counts = class_table(training.data.reports)
    boxes_of = {row[0]: row[1:] for row in counts[1:]}
    splits = [f'{name}&nbsp;boxes' for name in map(text, counts[0][1:])]
    has_val = len(on_val) > 1
    head = ['class', *COLUMNS, *['AP&nbsp;val'] * has_val, 'precision', 'recall', '', *splits]
    rows = []
    for label, (name, colour) in enumerate(zip(training.classes, palette(len(training.classes)))):
        row = [_of_class(training, results, column, label) for column in COLUMNS]
        row += [on_val.get(name, {}).get('AP', math.nan)] * has_val
        own = boxes_of.get(printable(name), ['-'] * len(splits))
        cells = [*map(_figure, row), *_precision_and_recall(results, label), *own]
        rows.append((row[0], [named(name, colour), *cells]))
    rows.sort(key=lambda row: -1 if math.isnan(row[0]) else row[0], reverse=True)
    return html_table([head, *(cells for _, cells in rows)])


def _classes_on_val(training: Training, on_val: Mapping) -> str:
    """The same figures of val, folded up."""
    names = [name for name in training.classes if name in on_val]
    if not names:
        return ''
    rows = [['class', *COLUMNS], *([name, *(_figure(on_val[name][key]) for key in COLUMNS)] for name in names)]
    return f'<details><summary>AP of each class on val</summary><div class="wide tall">{table(rows)}</div></details>'


def _of_class(training: Training, results: Results | None, column: str, label: int) -> float:
    if results is not None:
        return results.figure(column, label)
    values = [value for key, value in training.metrics.items() if key.endswith(f'/{training.classes[label]}_precision')]
    return values[0] if values and column == 'AP' else math.nan


def _precision_and_recall(results: Results | None, label: int) -> list[str]:
    if results is None:
        return ['-', '-', '']
    counts = results.counts
    right, found, there = counts[label, label], counts[:, label].sum(), counts[label].sum()
    curve = results.precision and results.precision.curve(IOU, label)
    spark = '' if curve is None else sparkline(curve.tolist(), f'precision over recall of {results.classes[label]}')
    return [_figure(right / found if found else math.nan), _figure(right / there if there else math.nan), spark]


def _figure(value: float) -> str:
    return f'{value:.3f}' if value >= 0 else '-'  # -1 and NaN: no such boxes


# --------------------------------------------------------------------------------------------------------------- charts
def _curves(runner: Runner) -> str:
    """Losses and AP of val, as LearningCurvesHook has them."""
    losses, figures = (runner.message_hub.get_info(name, {}) for name in (LOSSES, METRICS))
    if not losses and not figures:
        return '<p>Not drawn: the config leaves out LearningCurvesHook.</p>'
    shown = {}
    for key, curve in figures.items():
        group, column = split(key)
        if column in COLUMNS:
            shown[f'{column} (raw weights)' if group.startswith('raw/') else column] = curve
    order = sorted(shown, key=lambda name: (list(COLUMNS).index(name.split(' ')[0]), name))[:MAX_CURVES]
    shown = {name: shown[name] for name in order} or dict(list(figures.items())[:MAX_CURVES])
    losses = dict(list(losses.items())[:MAX_CURVES])
    span = (0, runner.iter)
    y_range = (0, 1) if all(0 <= y <= 1 for _, ys in shown.values() for y in ys) else None
    return line_chart(losses, 'iteration', 'Loss', span, log=True) + line_chart(
        shown, 'iteration', 'Evaluations of val', span, y_range
    )


def _recall(results: Results) -> str:
    """Precision over recall, of all classes and of each."""
    precision = results.precision
    if precision is None:
        return '<p>Nothing was detected.</p>'

    def chart(curves: dict, title: str) -> str:
        drawn = {name: (precision.recalls, curve) for name, curve in curves.items() if curve is not None}
        return line_chart(drawn, 'recall', title, (0, 1), (0, 1))

    overall = {
        'IoU 0.50': precision.curve(0.5),
        'IoU 0.75': precision.curve(0.75),
        'mean of 0.50 to 0.95': precision.curve(None),
    }
    figures = {label: results.figure('AP50', label) for label in range(len(results.classes))}
    order = sorted((label for label, figure in figures.items() if figure >= 0), key=lambda label: -figures[label])
    title = f'Precision of each class, IoU {IOU:.2f}'
    if len(order) > MAX_CURVES:
        half = MAX_CURVES // 2
        order = order[:half] + order[-half:]
        title = f'Precision of the {half} best and the {half} worst classes, IoU {IOU:.2f}'
    of_classes = {f'{printable(results.classes[i])} {figures[i]:.2f}': precision.curve(IOU, i) for i in order}
    return chart(overall, 'Precision, mean of the classes') + chart(of_classes, title)


# ------------------------------------------------------------------------------------------------------------ the rest
def _data(data: DataCheck) -> str:
    counts = class_table(data.reports)
    names = [printable(category.name) for category in data.reports['train'].categories]
    notes = ''.join(f'<p>{text(note)}</p>' for note in data.notes)
    if data.n_errors:
        notes += '<p>The training left out the images and boxes that have errors (--drop-bad).</p>'
    return (
        f'<p>{text(data.title)}</p>{notes}<div class="wide">{table(split_table(data.reports))}</div>'
        '<p class="soft">empty: images without boxes. an image: boxes, median. box size: side of a square of the '
        'median area, px. smallest: shortest side of any box, px.</p>'
        f'<div class="beside"><div class="tall">{count_table(counts, dict(zip(names, palette(len(names)))))}</div>'
        f'<div><h3>Findings</h3>{findings(data.reports, data.between)}</div></div>'
    )


def _speed(training: Training) -> str:
    runner = training.runner
    rows = []
    device = str(next(runner.model.parameters()).device)
    step = _seconds(runner, 'train')
    if step is not None:
        batch_size = runner.cfg.train_dataloader.batch_size
        n_train = len(training.data.reports['train'].images)
        rows += [
            ['training', f'{batch_size / step:.1f} images a second', f'{step * 1e3:.0f} ms an iteration'],
            [
                'length',
                f'{runner.iter} iterations',
                f'each image {runner.iter * batch_size / max(n_train, 1):.1f} times',
            ],
        ]
    batch = _seconds(runner, 'test')
    if batch is not None:
        batch_size = runner.cfg.test_dataloader.get('batch_size', 1)
        said = f'{counted(batch_size, "image")} at a time, as in the test'
        rows.append(['prediction', f'{1e3 * batch / batch_size:.1f} ms an image', said])
    parameters = sum(p.numel() for p in runner.model.parameters())
    rows += [
        [
            'model',
            f'{parameters / 1e6:.1f} million parameters',
            f'{Path(training.checkpoint).stat().st_size / 1e6:.0f} MB',
        ],
        ['machine', device_name(device), f'{os.cpu_count()} processors'],
        ['software', f'torch {torch.__version__}, Python {platform.python_version()}', platform.system()],
    ]
    return f'<div class="words">{table([["", "", ""], *rows])}</div>'


def _seconds(runner: Runner, mode: str) -> float | None:
    """Median of an iteration."""
    history = runner.message_hub.log_scalars.get(f'{mode}/time')
    return None if history is None or not len(history.data[0]) else float(np.median(history.data[0]))


def images_of(split) -> list[Path]:
    """What ``predict --source`` takes for the images of a split: their folders or, if others are in these, a few."""
    images = {Path(split.image_dir, image['file_name']): None for image in read_coco(split.ann_file)['images']}
    folders = sorted({path.parent for path in images})
    there = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    own = all(path in images for path in there if path.suffix.lower() in SUFFIXES)
    return folders if own and len(folders) <= MAX_SOURCES else list(images)[:MAX_SOURCES]


def _commands(training: Training, results: Results | None) -> str:
    example = None
    if results is not None:
        detections = results.detections
        if len(detections) and detections.score.max() > training.score:
            best = results.images[detections.image[detections.score.argmax()]]
            example = Path(training.folder.test.image_dir, best['file_name'])
    items = commands(
        training.checkpoint,
        training.config,
        training.runner.work_dir,
        images_of(training.folder.test),
        example,
        training.score,
        training.options,
        bool(training.ended),
    )
    parts = []
    for title, command in items:
        lines = '\n'.join(map(text, command.split('\n')))
        parts.append(f'<h3>{text(title)}</h3><pre>{lines}</pre>')
    return ''.join(parts)
