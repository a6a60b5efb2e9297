"""COCO-like data sets whose labels follow the classes of the config, by name."""

import logging

from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmdet.datasets import CocoPanopticDataset as MMDetCocoPanopticDataset
from mmengine.logging import print_log
from torch.utils.data import get_worker_info

from ..registry import DATASETS
from .careful import CarefulLoading
from .class_names import Comparison, check, compare, order_categories


class LabelsByName:
    """Label i is the class ``metainfo['classes'][i]``, wherever the file has it.

    mmdet numbers labels in the order of the file, while pictures and results take their names from the config: with
    another order names are swapped, and with a class that the file lacks those behind it shift.

    A name that only resembles one of the file is refused by :class:`mmdet_ddetr.hooks.ClassesHook`. Without that hook
    it is logged when the first image is loaded.

    Attributes:
        class_names: what does not fit between classes and file, once it is loaded.
        doubts_told: whether somebody else tells the doubts among it.

    Raises:
        DataError: none of the classes is in the file, or they are no tuple of names.
    """

    class_names = Comparison()
    doubts_told = False

    def COCOAPI(self, annotation_file: str):
        """What mmdet calls to read the file."""
        coco = super().COCOAPI(annotation_file)
        classes = self.metainfo['classes']
        is_default = classes == self.METAINFO.get('classes')
        names = [category.get('name') for category in coco.dataset.get('categories', [])]
        self.class_names = compare(classes, names, self.ann_file, is_default)
        check(self.class_names)
        _warn(self.class_names.notes)
        order_categories(coco, classes)
        return coco

    def prepare_data(self, idx: int) -> dict | None:
        if not self.doubts_told:
            self.doubts_told = True
            worker = get_worker_info()
            if worker is None or worker.id == 0:
                _warn(self.class_names.doubts)
        return super().prepare_data(idx)


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        print_log(sentence, logger='current', level=logging.WARNING)


@DATASETS.register_module()
class CocoDataset(LabelsByName, CarefulLoading, MMDetCocoDataset):
    """mmdet's ``CocoDataset``, with labels in the order of the config's classes and the limits of CarefulLoading."""


@DATASETS.register_module()
class CocoPanopticDataset(LabelsByName, CarefulLoading, MMDetCocoPanopticDataset):
    """mmdet's ``CocoPanopticDataset``, in the same way."""
