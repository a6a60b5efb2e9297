"""BiFPN: a weighted pyramid, top-down and bottom-up (EfficientDet, Tan et al., CVPR 2020, arXiv:1911.09070)."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS


@MODELS.register_module()
class BiFPN(BaseModule):
    """``num_layers`` BiFPN layers over the backbone's levels and coarser ones made from the last, by 1 x 1 and pooling.

    Args:
        in_channels: channels of each backbone level, finest first.
        out_channels: channels C of every level that is given out.
        num_outs: levels L given out; those beyond the backbone's halve the size of the one before.
        num_layers: repetitions.
        norm_cfg: norm after every convolution; None leaves it out. EfficientDet has batch norm, which needs more than a
            few images a GPU.
        eps: keeps the sum of a fusion's weights from zero.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int,
        num_layers: int = 3,
        norm_cfg: dict | None = dict(type='BN'),
        eps: float = 1e-4,
        init_cfg: dict | None = dict(type='Xavier', layer='Conv2d', distribution='uniform'),
    ):
        super().__init__(init_cfg)
        if num_outs < max(len(in_channels), 2):
            raise ValueError(
                f'num_outs must be at least 2 and as many as in_channels, got {num_outs} for {len(in_channels)}'
            )
        self.in_channels = list(in_channels)
        self.num_outs = num_outs
        lateral = dict(kernel_size=1, norm_cfg=norm_cfg, act_cfg=None)
        self.laterals = ModuleList(ConvModule(C, out_channels, **lateral) for C in in_channels)
        if num_outs > len(in_channels):
            self.extra = ConvModule(in_channels[-1], out_channels, **lateral)
        self.layers = Sequential(*(BiFPNLayer(out_channels, num_outs, norm_cfg, eps) for _ in range(num_layers)))

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """inputs [B, C_i, H_i, W_i] per backbone level, each half of the one before -> [B, C, H_i, W_i] per level."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(f'inputs must be {len(self.in_channels)} levels (in_channels), got {len(inputs)}')
        for finer, coarser in zip(inputs, inputs[1:]):
            if coarser.shape[2:] != halved(finer).shape[2:]:
                raise ValueError(
                    f'each level must be half of the one before, rounded up, got sizes {list(finer.shape[2:])} and '
                    f'{list(coarser.shape[2:])}'
                )
        levels = [lateral(level) for lateral, level in zip(self.laterals, inputs)]
        coarsest = inputs[-1]
        while len(levels) < self.num_outs:
            coarsest = halved(self.extra(coarsest) if coarsest is inputs[-1] else coarsest)
            levels.append(coarsest)
        return self.layers(tuple(levels))


class BiFPNLayer(BaseModule):
    """One pass from the coarsest level to the finest and one back, each input skipping to its output (section 3.2)."""

    def __init__(self, channels: int, num_levels: int, norm_cfg: dict | None, eps: float):
        super().__init__()
        self.down = ModuleList(Node(2, channels, norm_cfg, eps) for _ in range(num_levels - 1))  # to level i from i + 1
        # to level i + 1 from i; the coarsest has nothing in between that would differ from its input
        self.up = ModuleList(
            Node(3 if level < num_levels - 1 else 2, channels, norm_cfg, eps) for level in range(1, num_levels)
        )

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # [B, C, H, W] per level
        last = len(inputs) - 1
        between = [inputs[last]]
        for level in reversed(range(last)):
            above = F.interpolate(between[0], size=inputs[level].shape[2:], mode='nearest')
            between.insert(0, self.down[level](inputs[level], above))
        outputs = [between[0]]
        for level in range(1, last + 1):
            own = (inputs[level], between[level]) if level < last else (inputs[level],)
            outputs.append(self.up[level - 1](*own, halved(outputs[-1])))
        return tuple(outputs)


class Node(BaseModule):
    """Fast normalised fusion (section 3.3) of maps of one size, swish, and a depthwise-separable 3 x 3 convolution."""

    def __init__(self, num_inputs: int, channels: int, norm_cfg: dict | None, eps: float):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))
        self.eps = eps
        self.conv = DepthwiseSeparableConvModule(
            channels, channels, 3, padding=1, bias=False, norm_cfg=norm_cfg, dw_norm_cfg=None, act_cfg=None
        )

    def forward(self, *inputs: Tensor) -> Tensor:  # [B, C, H, W] each
        weights = self.weights.relu()
        weights = weights / (weights.sum() + self.eps)
        return self.conv(F.silu(sum(weight * x for weight, x in zip(weights, inputs))))


def halved(x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, ceil(H/2), ceil(W/2)]
    return F.max_pool2d(x, 3, stride=2, padding=1)
