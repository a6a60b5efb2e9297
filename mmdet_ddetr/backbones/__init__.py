"""Backbones that MMDetection lacks, and the checkpoint schemes that fill them."""

from . import efficientnet_lite_weights  # noqa: F401  registers its checkpoint scheme
from .dat import DAT
from .efficientnet_lite import EfficientNetLite
from .resnet_dc5 import ResNetDC5

__all__ = ['DAT', 'EfficientNetLite', 'ResNetDC5']
