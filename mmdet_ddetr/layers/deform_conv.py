"""Deformable convolutions that predict their own offsets, for ``dcn=dict(type='mmdet_ddetr.DCNv2')`` of a backbone.

They have the parameters and names of mmcv's packs of the same name, and need no compiled mmcv.
"""

import math

import torch
from torch import Tensor, nn

from ..ops import deform_conv2d
from ..registry import MODELS
from .counts import check_counts, check_pairs


class _Conv2d(nn.Conv2d):
    pass


class OffsetConv(_Conv2d):
    """``nn.Conv2d`` that an ``init_cfg`` with ``layer='Conv2d'``, as necks and heads have it, leaves at 0.

    mmengine's initialisers choose modules by the names of their class and of its bases.
    """


class _DeformConv(nn.Module):
    """What both versions share; ``maps`` are the maps that a tap needs: y and x, and the mask."""

    maps: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
    ):
        super().__init__()
        check_counts(in_channels=in_channels, out_channels=out_channels, groups=groups, deform_groups=deform_groups)
        for name, number in (('in_channels', in_channels), ('out_channels', out_channels)):
            if number % groups:
                raise ValueError(f'{name} must be a multiple of groups = {groups}, got {number}')
        if in_channels % deform_groups:
            raise ValueError(f'in_channels must be a multiple of deform_groups = {deform_groups}, got {in_channels}')
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation = check_pairs(
            kernel_size=kernel_size, stride=stride, dilation=dilation
        )
        (self.padding,) = check_pairs(0, padding=padding)
        self.groups, self.deform_groups = groups, deform_groups
        self.transposed, self.output_padding = False, (0, 0)  # mmcv's ConvModule reads these of any convolution
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        taps = math.prod(self.kernel_size)
        self.conv_offset = OffsetConv(
            in_channels, deform_groups * self.maps * taps, self.kernel_size, self.stride, self.padding, self.dilation
        )
        self.init_weights()

    def init_weights(self):
        """As mmcv's packs: at first every tap is where a plain convolution has it."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def points(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """offset [B, G*T*2, Ho, Wo] in cells, (y, x), and mask [B, G*T, Ho, Wo] or None."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C_out, Ho, Wo]
        offset, mask = self.points(x)
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding}, dilation={self.dilation}, groups={self.groups}, '
            f'deform_groups={self.deform_groups}, bias={self.bias is not None}'
        )


@MODELS.register_module()
class DCN(_DeformConv):
    """Deformable convolution (arXiv:1703.06211, eq. 2).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as ``nn.Conv2d``.
        deform_groups: groups of channels with offsets of their own.
        bias: whether the convolution has one; that of the offsets always has.

    ``conv_offset`` gives (y, x) of each tap in cells of the input, group by group. mmengine's ``dcn_offset_lr_mult`` is
    of mmcv's layers alone. Here, ``paramwise_cfg=dict(custom_keys={'conv_offset': dict(lr_mult=0.1)})`` does that.
    """

    maps = 2

    def points(self, x):
        return self.conv_offset(x), None


@MODELS.register_module()
class DCNv2(_DeformConv):
    """Modulated deformable convolution (arXiv:1811.11168, eq. 1): every tap has a factor in [0, 1], too.

    Arguments as for ``DCN``; a bias is there unless it is turned off, as in mmcv. ``conv_offset`` gives the offsets
    and, in its last third, the logits of the factors.
    """

    maps = 3

    def __init__(self, *args, bias: bool = True, **kwargs):
        super().__init__(*args, bias=bias, **kwargs)

    def points(self, x):
        offsets_and_logits = self.conv_offset(x)
        T = offsets_and_logits.shape[1] // 3
        return offsets_and_logits[:, : 2 * T], offsets_and_logits[:, 2 * T :].sigmoid()
