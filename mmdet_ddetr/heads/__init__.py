from .set_head import SetHead

__all__ = ['SetHead']
