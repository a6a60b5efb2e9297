"""Data sets in the format of Pascal VOC: a list of names, and an XML file for each image."""

from mmdet.datasets import VOCDataset as MMDetVOCDataset
from mmdet.datasets import XMLDataset as MMDetXMLDataset

from ..registry import DATASETS
from .careful import CarefulLoading
from .errors import DataError
from .files import check_annotations


class CarefulXML(CarefulLoading):
    """``CarefulLoading`` that also names the XML file which cannot be read."""

    def parse_data_info(self, img_info: dict) -> dict:
        path = img_info['xml_path']
        check_annotations(path, self.backend_args)
        try:
            return super().parse_data_info(img_info)
        except Exception as error:
            raise DataError(
                f'{path} cannot be read as an annotation of Pascal VOC: {type(error).__name__}: {error}'
            ) from error


@DATASETS.register_module()
class XMLDataset(CarefulXML, MMDetXMLDataset):
    """mmdet's ``XMLDataset``, with the limits of CarefulLoading, and every failure names its file."""


@DATASETS.register_module()
class VOCDataset(CarefulXML, MMDetVOCDataset):
    """mmdet's ``VOCDataset``, in the same way."""
