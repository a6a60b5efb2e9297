from .labels import LabelGuard, check_labels
from .mask_head import MaskHead
from .panoptic_fusion import PanopticFusion
from .set_head import SetHead

__all__ = ['LabelGuard', 'MaskHead', 'PanopticFusion', 'SetHead', 'check_labels']
