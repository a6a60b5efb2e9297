from mmdet.datasets import LVISV05Dataset as MMDetLVISV05Dataset
from mmdet.datasets import LVISV1Dataset as MMDetLVISV1Dataset

from ..registry import DATASETS
from .careful import CarefulLoading


@DATASETS.register_module()
class LVISV05Dataset(CarefulLoading, MMDetLVISV05Dataset):
    """mmdet's ``LVISV05Dataset``, with the limits of CarefulLoading, and every failure names its file."""


@DATASETS.register_module()
class LVISV1Dataset(CarefulLoading, MMDetLVISV1Dataset):
    """mmdet's ``LVISV1Dataset``, in the same way."""
