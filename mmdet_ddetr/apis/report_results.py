"""What the test of a training found, in the form that its report needs."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from mmengine.runner import Runner

from ..evaluation import CocoMetric
from ..evaluation.matching import Boxes, Outcome, match
from ..evaluation.precision import COLUMNS, Precision
from ..hooks.evaluation_table import FOLDER

MAX_IMAGES = 5000  # whose mistakes are looked at, at even distances
OF_BOXES = 'coco/bbox'  # in the names of rows of the table
SAVED = re.compile(r'(epoch|iter)_(\d+)\.pth$')


@dataclass
class Results:
    """
    Attributes:
        classes: names; labels are their indices.
        images: COCO's entries of the images whose mistakes are looked at.
        of_images: how many there are in all.
        outcome: of their detections, from the score with the best F1 on.
        precision: of the whole split; None: nothing was detected.
    """

    classes: Sequence[str]
    images: list[dict]
    of_images: int
    outcome: Outcome
    precision: Precision | None

    @cached_property
    def counts(self) -> np.ndarray:
        """Of ``Outcome.matrix``."""
        return self.outcome.matrix(len(self.classes))

    @property
    def objects(self) -> Boxes:
        return self.outcome.matches.objects

    @property
    def detections(self) -> Boxes:
        return self.outcome.matches.detections

    def figure(self, column: str, label: int | None = None) -> float:
        """AP by a key of ``COLUMNS``; NaN where there are no such objects."""
        if self.precision is not None:
            return self.precision.figure(column, label)
        has_objects = len(self.objects) if label is None else (self.objects.label == label).any()
        return 0.0 if has_objects and column in ('AP', 'AP50', 'AP75') else float('nan')


def keep_evaluation(runner: Runner) -> None:
    """Let the test keep what it computes, for :func:`results_of`."""
    for metric in runner.test_loop.evaluator.metrics:
        if isinstance(metric, CocoMetric):
            metric.keep = True


def results_of(runner: Runner, classes: Sequence[str]) -> Results | None:
    """Of the test that the runner has done; None where it was measured by none of COCO's metrics of boxes."""
    metrics = runner.test_loop.evaluator.metrics
    metric = next((m for m in metrics if isinstance(m, CocoMetric) and m.keep and 'bbox' in m.metrics), None)
    if metric is None or metric._coco_api is None:
        return None
    truth, evaluation = metric._coco_api, metric.evaluations.get('bbox')
    categories = truth.get_cat_ids(cat_names=classes)
    images = sorted(truth.dataset['images'], key=lambda image: str(image['file_name']))
    of_images = len(images)
    images = images[:: -(-of_images // MAX_IMAGES) or 1]
    index_of = {image['id']: i for i, image in enumerate(images)}
    label_of = {id: label for label, id in enumerate(categories)}
    found = evaluation.cocoDt.dataset['annotations'] if evaluation else []
    objects = Boxes.of(truth.dataset['annotations'], index_of, label_of)
    matches = match(objects, Boxes.of(found, index_of, label_of))
    precision = Precision.of(evaluation, categories) if evaluation else None
    return Results(classes, images, of_images, matches.at(matches.best_score()), precision)


def figures_on_val(runner: Runner, checkpoint: str | Path) -> dict[str | None, dict[str, float]]:
    """AP by column, of each class and of all (None), when the checkpoint was evaluated in training.

    They are in the table that EvaluationTableHook wrote; {} where there is none.
    """
    saved = SAVED.search(str(checkpoint))
    if saved is None:
        return {}
    iteration = int(saved[2]) * (len(runner.train_dataloader) if saved[1] == 'epoch' else 1)
    path = Path(runner.work_dir, FOLDER, f'iter_{iteration}.csv')
    if not path.is_file():
        return {}
    figures = {}
    with path.open(newline='', encoding='utf-8') as file:
        for row in csv.DictReader(file):
            name = row['class'].removesuffix(f' ({OF_BOXES})')
            figures.setdefault(None if name == 'all' else name, {key: _number(row.get(key)) for key in COLUMNS})
    return figures


def _number(cell: str | None) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float('nan')
