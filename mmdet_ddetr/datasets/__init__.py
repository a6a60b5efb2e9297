from .check import check_coco, check_splits, drop_unused_groups
from .clean import clean_coco
from .coco import CocoDataset, CocoPanopticDataset
from .coco_folder import CocoFolder, CocoSplit, find_coco_folder, read_coco
from .errors import DataError
from .formats import find_data
from .image_file import decode_image, read_image
from .load_once import LoadImageOnce
from .loading import LoadImageFromFile
from .lvis import LVISV05Dataset, LVISV1Dataset
from .panoptic import LoadPanopticInstances
from .paste_boxes import PasteBoxes
from .report import Report
from .splits import split_off_val
from .xml import VOCDataset, XMLDataset

__all__ = [
    'CocoDataset',
    'CocoFolder',
    'CocoPanopticDataset',
    'CocoSplit',
    'DataError',
    'LVISV05Dataset',
    'LVISV1Dataset',
    'LoadImageFromFile',
    'LoadImageOnce',
    'LoadPanopticInstances',
    'PasteBoxes',
    'Report',
    'VOCDataset',
    'XMLDataset',
    'check_coco',
    'check_splits',
    'clean_coco',
    'decode_image',
    'drop_unused_groups',
    'find_coco_folder',
    'find_data',
    'read_coco',
    'read_image',
    'split_off_val',
]
