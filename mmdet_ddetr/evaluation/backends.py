"""What computes COCO's figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from unittest.mock import patch

from mmdet.evaluation.metrics import coco_metric

BACKENDS = 'pycocotools', 'faster_coco_eval'


def check_backend(name: str) -> None:
    """
    Raises:
        ValueError: there is no such backend.
        ImportError: its package is missing.
    """
    if name not in BACKENDS:
        raise ValueError(f'backend must be one of {", ".join(BACKENDS)}, got {name!r}')
    if find_spec(name) is None:
        raise ImportError(f'backend={name!r} needs a package: pip install {name.replace("_", "-")}')


@contextmanager
def evaluated_by(name: str) -> Iterator[list]:
    """Within it, mmdet's ``CocoMetric`` computes with a backend, for which mmdet has no argument.

    Returns:
        the list that gets each ``COCOeval`` that is made: mmdet's metric gives a few of their figures only.
    """
    kinds = {kind: getattr(coco_metric, kind) for kind in ('COCOeval', 'COCOevalMP')}
    if name != 'pycocotools':
        from faster_coco_eval import COCOeval_faster

        kinds['COCOeval'] = partial(COCOeval_faster, print_function=print)
    made = []

    def make(kind, *args):
        made.append(kind(*args))
        return made[-1]

    with patch.multiple(coco_metric, **{name: partial(make, kind) for name, kind in kinds.items()}):
        yield made
