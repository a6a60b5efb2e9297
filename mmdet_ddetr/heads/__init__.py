from .labels import LabelGuard, check_labels
from .mask_head import MaskHead
from .panoptic_fusion import PanopticFusion
from .rfcn_head import RFCNHead, RFCNRoIHead
from .set_head import SetHead

__all__ = ['LabelGuard', 'MaskHead', 'PanopticFusion', 'RFCNHead', 'RFCNRoIHead', 'SetHead', 'check_labels']
