"""The parts of a report about mistakes: confusion matrix, false positives and misses."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..evaluation.matching import CLASS, IGNORED, IOU, NEAR, NOTHING, PLACE, RIGHT, SECOND
from .page import table, text
from .report_pictures import Mark, picture
from .report_results import Results

PICTURES = 12  # of false positives, and of misses
OF_AN_IMAGE = 2  # at most
SAMPLES = 6
SECONDS = 2  # for the pictures of each kind: of huge images there are fewer
MAX_NAMES = 10  # of boxes in a sample; where there are more, those of mistakes stand at them, or none
MAX_CLASSES = 16  # of the matrix; those with fewest mistakes are one row and column
PAIRS = 8  # of classes that are taken for each other


def kinds_of_mistakes(results: Results) -> str:
    """How many there are of each kind."""
    outcome = results.outcome
    counts = Counter(outcome.kind.tolist())
    missed = outcome.missed
    confused = int((missed & (outcome.taken_for >= 0)).sum())
    rows = [
        ['', 'boxes', ''],
        ['right', counts[RIGHT], f'of the right class, with an IoU of {IOU} or more'],
        ['wrong class', counts[CLASS], 'on an object of another class'],
        ['badly placed', counts[PLACE], f'near an object of their class, but with an IoU below {IOU}'],
        ['second box', counts[SECOND], 'on an object that has its box already'],
        ['nothing there', counts[NOTHING], 'no object of the class is near'],
        ['missed', int(missed.sum()) - confused, 'objects without any box'],
    ]
    return f'<div class="words">{table(rows)}</div>'


def confusion(results: Results) -> str:
    """The matrix, as a table whose cells are shaded by their share of the row."""
    counts, names, others = _shortened(results.counts, list(results.classes))
    totals = counts.sum(1)
    head = ''.join(f'<th scope="col"><span>{text(name)}</span></th>' for name in [*names, 'missed', 'objects'])
    lines = [f'<tr><td class="corner">truth ↓ &nbsp; found →</td>{head}</tr>']
    for i, name in enumerate([*names, 'nothing there']):
        is_last = i == len(names)
        cells = []
        for j, count in enumerate(counts[i]):
            if is_last and j == len(names):
                cells.append('<td></td>')
                continue
            share = count / max(totals[i], 1)
            kind = 'bad' if i != j else 'mixed' if name == others else 'good'
            of = text(names[j] if j < len(names) else 'missed')
            title = f'{text(name)}, {of}: {count} of {totals[i]}'
            shade = f' style="--share:{share:.2f}"' if count else ' data-none'
            cells.append(f'<td class="{kind}"{shade} title="{title}">{count or "·"}</td>')
        total = '' if is_last else f'{totals[i]}'
        lines.append(f'<tr><th scope="row">{text(name)}</th>{"".join(cells)}<td class="soft">{total}</td></tr>')
    return f'<table class="matrix">{"".join(lines)}</table>'


def confusions(results: Results) -> str:
    """Which classes are most often taken for which."""
    counts, totals = results.counts[:-1, :-1].copy(), results.counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind='stable')[:PAIRS]
    pairs = [divmod(int(i), counts.shape[1]) for i in order if counts.flat[i]]
    if not pairs:
        return '<p>No object was taken for one of another class.</p>'
    items = [
        f'<li><b>{text(results.classes[i])}</b> taken for <b>{text(results.classes[j])}</b>: '
        f'{counts[i, j]} of {totals[i]} ({counts[i, j] / totals[i]:.0%})</li>'
        for i, j in pairs
    ]
    return f'<h3>Most often</h3><ul>{"".join(items)}</ul>'


def _shortened(counts: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str], str]:
    """The classes with most mistakes, in their order, and the others as one: counts, names, name of the others."""
    if len(names) <= MAX_CLASSES:
        return counts, names, ''
    mistakes = counts.sum(0)[:-1] + counts.sum(1)[:-1] - 2 * counts.diagonal()[:-1]
    shown = sorted(np.argsort(-mistakes, kind='stable')[: MAX_CLASSES - 1].tolist())
    groups = np.full(len(counts), len(shown))
    groups[shown], groups[-1] = np.arange(len(shown)), len(shown) + 1
    short = np.zeros((len(shown) + 2, len(shown) + 2), int)
    np.add.at(short, (groups[:, None], groups[None]), counts)
    others = f'{len(names) - len(shown)} others'
    return short, [*(names[i] for i in shown), others], others


# ------------------------------------------------------------------------------------------------------------- pictures
class Pictures:
    """Of the images of a test split.

    Args:
        image_dir: what their file names are relative to.
    """

    def __init__(self, results: Results, image_dir: Path):
        self.results, self.image_dir = results, image_dir
        self._detections = _grouped(results.detections.image, results.outcome.kind != IGNORED)
        self._missed = _grouped(results.objects.image, results.outcome.missed)

    def samples(self) -> str:
        """Images with objects, at even distances, with all that was found and missed."""
        images = sorted(set(self.results.objects.image.tolist())) or range(len(self.results.images))
        chosen = {images[round(i * (len(images) - 1) / (SAMPLES - 1))] for i in range(SAMPLES)} if images else ()
        return _in_time(map(self._sample, sorted(chosen)))

    def _sample(self, image: int) -> str:
        kinds, taken = self.results.outcome.kind[self._detections[image]], self.results.outcome.taken_for
        marks = [replace(self._missed_mark(o), named=taken[o] < 0) for o in self._missed[image]]  # else by what took it
        marks += [self._detection_mark(d) for d in self._by_size(self._detections[image])]
        if len(marks) > MAX_NAMES:
            wrong = sum(mark.kind != 'right' for mark in marks)
            marks = [replace(m, named=m.named and m.kind != 'right' and wrong <= MAX_NAMES) for m in marks]
        right = int((kinds == RIGHT).sum())
        said = f'{right} right, {len(kinds) - right} wrong, {len(self._missed[image])} missed'
        return self._picture(image, marks, said)

    def false_positives(self) -> str:
        """The detections of the highest scores that are wrong."""
        outcome, detections = self.results.outcome, self.results.detections
        wrong = np.flatnonzero((outcome.kind != RIGHT) & (outcome.kind != IGNORED))
        order = np.argsort(-detections.score[wrong], kind='stable')
        return _in_time(map(self._false_positive, self._first(wrong[order], detections.image)))

    def _false_positive(self, d: int) -> str:
        image = self.results.detections.image[d]
        others = [self._detection_mark(other) for other in self._detections[image] if other != d]
        others += [self._missed_mark(o) for o in self._missed[image]]
        marks = [*map(_faint, others), self._detection_mark(d)]
        return self._picture(image, marks, self._why_wrong(d), self.results.detections.box[d])

    def misses(self) -> str:
        """The objects that the detector comes least near to, large ones first; each class in its turn."""
        objects = self.results.objects
        missed = np.flatnonzero(self.results.outcome.missed)
        scores = self.results.outcome.matches.score_of_objects()[missed]
        worst = missed[np.lexsort((-objects.box[missed, 2:].prod(1), scores))]
        in_turns = np.argsort(_ranks(objects.label[worst]), kind='stable')
        return _in_time(map(self._miss, self._first(worst[in_turns], objects.image)))

    def _miss(self, o: int) -> str:
        image = self.results.objects.image[o]
        others = [self._missed_mark(other) for other in self._missed[image] if other != o]
        others += [self._detection_mark(d) for d in self._detections[image]]
        marks = [*map(_faint, others), self._missed_mark(o)]
        return self._picture(image, marks, self._why_missed(o), self.results.objects.box[o])

    def _why_wrong(self, d: int) -> str:
        results = self.results
        matches, kind = results.outcome.matches, results.outcome.kind[d]
        there, iou = matches.near[d], matches.iou[d]
        if kind == CLASS:
            return f'labelled {self._class(results.objects.label[there])} (IoU {iou:.2f})'
        if kind == SECOND:
            return f'second box on {self._class(results.objects.label[there])} (IoU {iou:.2f})'
        if kind == PLACE:
            return f'badly placed (IoU {matches.near_own[d]:.2f})'
        if iou >= NEAR:
            return f'only {self._class(results.objects.label[there])} there (IoU {iou:.2f})'
        return 'nothing labelled there'

    def _why_missed(self, o: int) -> str:
        results = self.results
        taken, score = results.outcome.taken_for[o], results.outcome.matches.score_of_objects()[o]
        if taken >= 0:
            return f'taken for {self._class(results.detections.label[taken])}'
        return f'found with a score of {score:.2f} only' if score else 'not found at any score'

    def _class(self, label: int) -> str:
        return self.results.classes[label]

    def _detection_mark(self, d: int) -> Mark:
        detections = self.results.detections
        kind = 'right' if self.results.outcome.kind[d] == RIGHT else 'wrong'
        return Mark(detections.box[d], kind, f'{self._class(detections.label[d])} {detections.score[d]:.2f}')

    def _missed_mark(self, o: int) -> Mark:
        objects = self.results.objects
        return Mark(objects.box[o], 'missed', self._class(objects.label[o]))

    def _by_size(self, detections: Sequence[int]) -> list[int]:
        """Large ones first, so that they hide none."""
        area = self.results.detections.box[:, 2:].prod(1)
        return sorted(detections, key=lambda d: -area[d])

    @staticmethod
    def _first(indices: np.ndarray, images: np.ndarray) -> list[int]:
        chosen, number = [], Counter()
        for i in indices:
            if number[images[i]] < OF_AN_IMAGE and len(chosen) < PICTURES:
                chosen.append(i)
                number[images[i]] += 1
        return chosen

    def _picture(self, image: int, marks: Sequence[Mark], said: str, around: np.ndarray | None = None) -> str:
        name = self.results.images[image]['file_name']
        title = '' if around is None else f'<b>{text(marks[-1].name)}: {text(said)}</b>'
        rest = text(name) if around is not None else f'{text(name)} <span class="soft">{text(said)}</span>'
        return picture(Path(self.image_dir, name), marks, title + rest, around)


def _in_time(figures: Iterable[str]) -> str:
    """Those that are drawn within SECONDS, but one at least."""
    end, drawn = time.monotonic() + SECONDS, []
    for figure in figures:
        drawn.append(figure)
        if time.monotonic() > end:
            break
    return ''.join(drawn)


def _faint(mark: Mark) -> Mark:
    return replace(mark, named=False, faint=True)


def _ranks(labels: np.ndarray) -> list[int]:
    """Of each item, how many of its label come before it."""
    before = Counter()
    ranks = []
    for label in labels.tolist():
        ranks.append(before[label])
        before[label] += 1
    return ranks


def _grouped(images: np.ndarray, chosen: np.ndarray) -> dict[int, list[int]]:
    groups = defaultdict(list)
    for i in np.flatnonzero(chosen):
        groups[int(images[i])].append(int(i))
    return groups
