from .. import checkpoints  # noqa: F401  registers the loader of hf:// addresses for load_from and init_cfg
from .anchor_detr import AnchorDETR
from .base import BaseDETR
from .conditional_detr import ConditionalDETR
from .dab_detr import DABDETR, DABDeformableDETR
from .deformable_detr import DeformableDETR
from .detr import DETR
from .sam_detr import SAMDETR
from .segmentation import (
    AnchorDETRWithMasks,
    ConditionalDETRWithMasks,
    DABDeformableDETRWithMasks,
    DABDETRWithMasks,
    DeformableDETRWithMasks,
    DETRWithMasks,
    SAMDETRWithMasks,
    SMCADETRWithMasks,
)
from .smca_detr import SMCADETR
from .tta import DDetrTTAModel

__all__ = [
    'AnchorDETR',
    'AnchorDETRWithMasks',
    'BaseDETR',
    'ConditionalDETR',
    'ConditionalDETRWithMasks',
    'DABDETR',
    'DABDETRWithMasks',
    'DABDeformableDETR',
    'DABDeformableDETRWithMasks',
    'DDetrTTAModel',
    'DETR',
    'DETRWithMasks',
    'DeformableDETR',
    'DeformableDETRWithMasks',
    'SAMDETR',
    'SAMDETRWithMasks',
    'SMCADETR',
    'SMCADETRWithMasks',
]
