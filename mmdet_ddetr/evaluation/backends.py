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
def evaluated_by(name: str) -> Iterator[None]:
    """Within it, mmdet's ``CocoMetric`` computes with a backend: mmdet has no argument for that."""
    if name == 'pycocotools':
        yield
        return
    from faster_coco_eval import COCOeval_faster

    with patch.object(coco_metric, 'COCOeval', partial(COCOeval_faster, print_function=print)):
        yield
