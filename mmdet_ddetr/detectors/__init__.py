from .deformable_detr import DeformableDETR
from .detr import DETR
from .tta import DDetrTTAModel

__all__ = ['DDetrTTAModel', 'DETR', 'DeformableDETR']
