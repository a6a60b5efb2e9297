"""ResNet with a dilated last stage, "DC5" (DETR, section 4)."""

from mmdet.models.backbones import ResNet
from torch import nn

from mmdet_ddetr.registry import MODELS


@MODELS.register_module()
class ResNetDC5(ResNet):
    """mmdet's ResNet of any depth, whose C5 has stride 16 instead of 32.

    The last stage drops its stride and dilates by 2, except in its first block, which keeps dilation 1: torchvision's
    ``replace_stride_with_dilation=[False, False, True]``, for which the published DC5 weights were trained. mmdet's
    ``dilations=(1, 1, 1, 2)`` dilates the first block, too, and so computes something else from the same weights.

    Args:
        as in mmdet's ``ResNet``, with the four stages and without ``strides`` and ``dilations``, which are given.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), **kwargs)
        for module in self.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.dilation == (2, 2):
                module.dilation = module.padding = (1, 1)
