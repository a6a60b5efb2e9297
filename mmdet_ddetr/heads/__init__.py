from .mask_head import MaskHead
from .panoptic_fusion import PanopticFusion
from .set_head import SetHead

__all__ = ['MaskHead', 'PanopticFusion', 'SetHead']
