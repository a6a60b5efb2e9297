from .. import checkpoints  # noqa: F401  registers the loader of hf:// addresses for load_from and init_cfg
from .deformable_detr import DeformableDETR
from .detr import DETR
from .segmentation import DeformableDETRWithMasks, DETRWithMasks
from .tta import DDetrTTAModel

__all__ = ['DDetrTTAModel', 'DETR', 'DETRWithMasks', 'DeformableDETR', 'DeformableDETRWithMasks']
