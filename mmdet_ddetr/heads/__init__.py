from .mask_head import MaskHead
from .set_head import SetHead

__all__ = ['MaskHead', 'SetHead']
