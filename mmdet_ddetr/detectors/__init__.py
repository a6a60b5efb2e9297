from .deformable_detr import DeformableDETR
from .detr import DETR
from .segmentation import DeformableDETRWithMasks, DETRWithMasks
from .tta import DDetrTTAModel

__all__ = ['DDetrTTAModel', 'DETR', 'DETRWithMasks', 'DeformableDETR', 'DeformableDETRWithMasks']
