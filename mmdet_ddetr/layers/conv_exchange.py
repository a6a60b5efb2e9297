"""What the released multi-scale archive of SMCA-DETR has in its encoder in place of the paper's attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS

from .dropout import Dropout


@MODELS.register_module()
class ConvExchange(BaseModule):
    """Depth-wise convolutions within each level, from it to the next and back, between two 1x1 convolutions.

    Args:
        embed_dims: channels C.
        num_levels: maps L, each half as large as the one before.
        kernel_size: of the depth-wise convolutions.
        shared: one convolution leads from any level to the next, and one back, instead of one for each level.
        proj_drop: dropout of the output before the residual.
    """

    def __init__(
        self,
        embed_dims: int,
        num_levels: int,
        kernel_size: int = 7,
        shared: bool = False,
        proj_drop: float = 0.0,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size}')
        self.embed_dims = embed_dims
        self.num_levels = num_levels
        self.shared = shared

        def depthwise(stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(embed_dims, embed_dims, kernel_size, stride, kernel_size // 2, groups=embed_dims)

        def between_levels(stride: int = 1) -> nn.Module:
            return depthwise(stride) if shared else nn.ModuleList(depthwise(stride) for _ in range(num_levels - 1))

        self.in_conv = nn.Conv2d(embed_dims, embed_dims, 1)
        self.level_convs = nn.ModuleList(depthwise() for _ in range(num_levels))
        self.down_convs = between_levels(stride=2)  # to the next, coarser level
        self.up_convs = between_levels()  # from it
        self.out_conv = nn.Conv2d(embed_dims, embed_dims, 1)
        self.proj_drop = Dropout(proj_drop)

    def forward(
        self,
        query: Tensor,  # [B, S, C], cells of all levels
        query_pos: Tensor,  # [B, S, C]
        spatial_shapes: Sequence[tuple[int, int]],  # (H, W) per level
        **kwargs,
    ) -> Tensor:  # [B, S, C]
        halves = [((H - 1) // 2 + 1, (W - 1) // 2 + 1) for H, W in spatial_shapes]  # as a convolution has it
        if len(spatial_shapes) != self.num_levels or list(map(tuple, spatial_shapes[1:])) != halves[:-1]:
            raise ValueError(
                f'spatial_shapes must be those of {self.num_levels} levels, num_levels, each half as large as the one '
                f'before, got {spatial_shapes}'
            )
        cells = (query + query_pos).split([H * W for H, W in spatial_shapes], 1)
        maps = [x.transpose(1, 2).unflatten(-1, shape) for x, shape in zip(cells, spatial_shapes)]
        maps = [conv(self.in_conv(x)) for conv, x in zip(self.level_convs, maps)]
        sums = list(maps)
        pairs = self.num_levels - 1
        down_convs, up_convs = ([x] * pairs if self.shared else x for x in (self.down_convs, self.up_convs))
        for level, (down, up) in enumerate(zip(down_convs, up_convs)):
            finer, coarser = maps[level : level + 2]
            raised = F.interpolate(up(coarser), size=finer.shape[-2:], mode='bilinear', align_corners=True)
            sums[level] = sums[level] + raised
            sums[level + 1] = sums[level + 1] + down(finer)
        found = torch.cat([self.out_conv(x).flatten(2).transpose(1, 2) for x in sums], 1)
        return query + self.proj_drop(found)
