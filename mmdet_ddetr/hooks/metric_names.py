"""Names of an evaluation's figures, by any metric: which of them counts most and which way is better."""

import difflib
import re
from collections.abc import Iterable, Mapping

from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator

from .. import evaluation
from .errors import StartError

# The first that a key matches is followed where none is named: panoptic quality, AP of boxes, of masks, AP, AP at one
# IoU, recall. Of several that match, the first counts; where none matches, the first figure of all.
MAIN = (r'(^|/)PQ$', r'(^|/|_)bbox_m?AP$', r'(^|/|_)segm_m?AP$', r'(^|[/_])m?AP$', r'AP_?@?(50|0\.5)$', r'(^|/)AR@')
LESS = re.compile(r'(^|[_@ -])(loss|err|error|mae|mse|rmse|nll|ece|fid|m?mr)([_@ -]|$)', re.IGNORECASE)

# What gives the figures of _coco_keys and no others; a subclass with its own may add some.
COCO = (CocoMetric.compute_metrics, evaluation.CocoMetric.compute_metrics)

COLUMNS = {'mAP': 'AP', 'mAP_50': 'AP50', 'mAP_75': 'AP75', 'mAP_s': 'APs', 'mAP_m': 'APm', 'mAP_l': 'APl'}


def numbers(metrics: Mapping | None) -> dict[str, float]:
    """Those of an evaluation's results that are a number."""
    found = {}
    for key, value in (metrics or {}).items():
        try:
            found[key] = float(value)
        except (TypeError, ValueError, RuntimeError):  # a list, a text, a tensor of several
            continue
    return found


def main_figure(keys: Iterable[str]) -> str:
    """The key to follow where the user named none; see MAIN.

    Raises:
        ValueError: there are no keys.
    """
    keys = list(keys)
    if not keys:
        raise ValueError('keys is empty, expected the names of at least one figure')
    return next((key for pattern in MAIN for key in keys if re.search(pattern, key)), keys[0])


def rule_of(key: str) -> str:
    """'less' for losses, errors and miss rates, else 'greater'."""
    return 'less' if LESS.search(key.rsplit('/', 1)[-1]) else 'greater'


def split(key: str) -> tuple[str, str]:
    """What was measured, and the column of a table: ``val_a/coco/bbox_mAP_50`` is ``val_a/coco/bbox``, ``AP50``."""
    group, kind, name = re.match(r'(?:(.*)/)?(?:(bbox|segm)_)?(.*)', key, re.DOTALL).groups()
    return '/'.join(filter(None, (group, kind))), COLUMNS.get(name, name.replace('AP@', 'AP'))


def check_names(names: list[str], evaluator: Evaluator) -> tuple[list[str], str]:
    """Whether an evaluation has figures of these names, before there is one.

    Returns:
        Those that it has for certain, at least where anything was detected; and a warning of those that only a hook
        could add, or an empty text.

    Raises:
        StartError: one is misspelt, or two metrics write figures of the same name.
    """
    sets = getattr(evaluator, 'dataset_prefixes', None) or [None] * len(evaluator.metrics)  # MultiDatasetsEvaluator
    known, open_prefixes = [], []
    for metric, name in zip(evaluator.metrics, sets):
        prefix = ''.join(f'{part}/' for part in (name, metric.prefix) if part)
        if type(metric).compute_metrics in COCO:
            known += [prefix + key for key in _coco_keys(metric)]
        else:
            open_prefixes.append(prefix)
    if twice := sorted({key for key in known if known.count(key) > 1}):
        raise StartError(
            f'two metrics of the evaluator write {twice[0]!r}: give each a prefix of its own, such as '
            f"dict(type='CocoMetric', prefix='second', ...)"
        )
    unknown = [
        f'save_best is {name!r}; {advice(name, [*known, *(f"{prefix}..." for prefix in open_prefixes)])}'
        for name in names
        if name != 'auto' and name not in known and not any(map(name.startswith, open_prefixes))
    ]
    if misspelt := [text for text in unknown if 'Did you mean' in text]:
        raise StartError(misspelt[0])
    return [name for name in names if name in known], '; '.join(unknown)


def advice(name: str, keys: Iterable[str]) -> str:
    """Which names there are, the nearest to a wrong one first."""
    keys = list(keys)
    near = difflib.get_close_matches(name, keys, n=1)
    return f'the evaluation has {", ".join(keys)}' + (f'. Did you mean {near[0]!r}?' if near else "; or take 'auto'")


def _coco_keys(metric: CocoMetric) -> list[str]:
    keys = []
    for kind in metric.metrics:
        if kind == 'proposal_fast':
            keys += [f'AR@{n}' for n in metric.proposal_nums]
        elif kind == 'proposal':
            keys += metric.metric_items or ['AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']
        else:
            keys += [f'{kind}_{item}' for item in metric.metric_items or COLUMNS]
    classes = (metric.dataset_meta or {}).get('classes', ()) if isinstance(metric.dataset_meta, Mapping) else ()
    return [*keys, *(f'{name}_precision' for name in classes)]
