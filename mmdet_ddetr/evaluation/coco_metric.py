"""COCO's metrics for labels that follow the classes of the config, by name."""

import numpy as np
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.evaluation import CocoPanopticMetric as MMDetCocoPanopticMetric

from ..datasets.class_names import order_categories
from ..datasets.files import check_annotations
from ..registry import METRICS
from .backends import check_backend, evaluated_by


class MetricByName:
    """Label i is the class ``dataset_meta['classes'][i]``, wherever the annotation file has it.

    The partner of :class:`mmdet_ddetr.datasets.CocoDataset`.

    Attributes:
        file_categories: of the annotation file, in its order.

    Raises:
        DataError: the annotation file is too large, or no regular file.
    """

    file_categories = ()

    def __init__(self, ann_file: str | None = None, *args, backend_args: dict | None = None, **kwargs):
        check_annotations(ann_file, backend_args)
        super().__init__(ann_file, *args, backend_args=backend_args, **kwargs)

    @property
    def dataset_meta(self) -> dict | None:
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        self._dataset_meta = meta
        if self._coco_api is not None:
            if not self.file_categories:
                self.file_categories = self._coco_api.dataset.get('categories', [])
            order_categories(self._coco_api, meta['classes'])


@METRICS.register_module()
class CocoMetric(MetricByName, MMDetCocoMetric):
    """mmdet's ``CocoMetric``, with labels in the order of the config's classes.

    A class that the annotation file lacks counts in no mean. The figures of single classes are right where ids are not
    sorted in the file, too: pycocotools sorts them, and mmdet's metric takes the figures in the file's order.

    Args:
        backend: what computes the figures: ``pycocotools``, or ``faster_coco_eval``, a package of that name that gives
            the same in a fraction of the time.
        *args, **kwargs: as of mmdet's.

    Attributes:
        keep: whether to keep what computed the figures; False: it takes memory.
        evaluations: then, the ``COCOeval`` of each kind, ``bbox`` or ``segm``; none where nothing was detected at all.

    Raises:
        ValueError: there is no such backend, or ``use_mp_eval`` asks for pycocotools.
        ImportError: its package is missing.
        DataError: as of :class:`MetricByName`.
    """

    def __init__(self, *args, backend: str = 'pycocotools', **kwargs):
        check_backend(backend)
        super().__init__(*args, **kwargs)
        if self.use_mp_eval and backend != 'pycocotools':
            raise ValueError(f'use_mp_eval must be False with backend={backend!r}: its processes run pycocotools')
        self.backend = backend
        self.keep = False
        self.evaluations = {}

    def compute_metrics(self, results: list) -> dict[str, float]:
        if self._coco_api is not None:
            ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
            self.cat_ids = sorted(ids)
            rank = np.argsort(np.argsort(ids))  # of each label's id
            results = [(gt, dict(pred, labels=rank[pred['labels']])) for gt, pred in results]
        with evaluated_by(self.backend) as made:
            figures = super().compute_metrics(results)
        if self.keep:
            self.evaluations = {evaluation.params.iouType: evaluation for evaluation in made}
        return figures


@METRICS.register_module()
class CocoPanopticMetric(MetricByName, MMDetCocoPanopticMetric):
    """mmdet's ``CocoPanopticMetric``, with labels in the order of the config's classes."""

    @MetricByName.dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        MetricByName.dataset_meta.fset(self, meta)
        self.categories = self._coco_api and self._coco_api.cats  # in their new order
