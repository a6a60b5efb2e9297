"""Deformable RoI pooling that predicts its own offsets, for the ``roi_layer`` of ``mmdet_ddetr.SingleRoIExtractor``.

The first three have the parameters and names of mmcv's layers of the same name, and need no compiled mmcv.
"""

import math

from torch import Tensor, nn

from ..ops import deform_ps_roi_pool, deform_roi_pool
from ..registry import MODELS
from .counts import check_counts, check_pairs


@MODELS.register_module()
class DeformRoIPool(nn.Module):
    """``ops.deform_roi_pool`` as a layer; without offsets it is plain RoI pooling by averages.

    Args:
        output_size: (h, w), bins of a RoI.
        spatial_scale: cells of the features per unit of the RoIs, 1 / stride.
        sampling_ratio: samples of a bin along an axis; 0: about one a cell.
        gamma: an offset of 1 moves a bin by this share of its RoI.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ):
        super().__init__()
        (self.output_size,) = check_pairs(output_size=output_size)
        self.spatial_scale, self.sampling_ratio, self.gamma = float(spatial_scale), int(sampling_ratio), float(gamma)

    def forward(
        self,
        input: Tensor,  # [B, C, H, W]
        rois: Tensor,  # [R, 5]
        offset: Tensor | None = None,  # [R, 2, h, w]
    ) -> Tensor:  # [R, C, h, w]
        return deform_roi_pool(
            input, rois, offset, self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma
        )

    def extra_repr(self) -> str:
        return (
            f'output_size={self.output_size}, spatial_scale={self.spatial_scale:.6g}, '
            f'sampling_ratio={self.sampling_ratio}, gamma={self.gamma}'
        )


@MODELS.register_module()
class DeformRoIPoolPack(DeformRoIPool):
    """Deformable RoI pooling (DCN, arXiv:1703.06211, section 2.2).

    What plain pooling gives goes through three linear layers that say by how much each bin moves; at first, by nothing.

    Args:
        output_channels: channels of the features.
        deform_fc_channels: width of the hidden layers.
        output_size, spatial_scale, sampling_ratio, gamma: as for ``DeformRoIPool``.

    The papers let these layers learn more slowly than the rest: at 0.01 of the learning rate in the official code of
    DCN on FPN (one layer there) and at 0.1 in DCNv2; MMDetection's configs leave it at 1. In a config:
    ``optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'offset_fc': dict(lr_mult=0.1)}))``.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ):
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        check_counts(output_channels=output_channels, deform_fc_channels=deform_fc_channels)
        self.output_channels, self.deform_fc_channels = output_channels, deform_fc_channels
        self.offset_fc = self._branch(hidden=2, per_bin=2)

    def _branch(self, hidden: int, per_bin: int) -> nn.Sequential:
        """Linear layers from a RoI's features to numbers of its bins, which are zero at first."""
        bins = math.prod(self.output_size)
        width, layers = bins * self.output_channels, []
        for _ in range(hidden):
            layers += [nn.Linear(width, self.deform_fc_channels), nn.ReLU(inplace=True)]
            width = self.deform_fc_channels
        last = nn.Linear(width, bins * per_bin)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(*layers, last)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # [B, C, H, W], [R, 5] -> [R, C, h, w]
        return super().forward(input, rois, self._offset(self._plain(input, rois)))

    def _plain(self, input: Tensor, rois: Tensor) -> Tensor:  # [R, C*h*w]
        """What the bins' numbers are predicted from."""
        if input.shape[1] != self.output_channels:
            raise ValueError(
                f'output_channels must be those of the features, {input.shape[1]}, got {self.output_channels}'
            )
        return super().forward(input, rois).flatten(1)

    def _offset(self, pooled: Tensor) -> Tensor:  # [R, C*h*w] -> [R, 2, h, w]
        return self.offset_fc(pooled).view(-1, 2, *self.output_size)


@MODELS.register_module()
class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """Modulated deformable RoI pooling (DCNv2, arXiv:1811.11168, eq. 2): every bin has a factor in [0, 1], too.

    Arguments as for ``DeformRoIPoolPack``. Two more linear layers give the logits of the factors, 0 at first. In the
    paper the learning rate of both branches is 0.1 of the rest's.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mask_fc = self._branch(hidden=1, per_bin=1).append(nn.Sigmoid())

    def forward(self, input, rois):
        pooled = self._plain(input, rois)
        mask = self.mask_fc(pooled).view(-1, 1, *self.output_size)
        return DeformRoIPool.forward(self, input, rois, self._offset(pooled)) * mask


@MODELS.register_module()
class DeformPSRoIPool(nn.Module):
    """``ops.deform_ps_roi_pool`` as a layer: position-sensitive RoI pooling of score maps, with or without offsets.

    Args:
        output_dim: channels of the result.
        group_size: rows and columns of the grid of score maps.
        pooled_size: rows and columns of bins; None: group_size.
        part_size: rows and columns of the offsets; None: pooled_size.
        sample_per_part: samples of a bin along an axis.
        spatial_scale: cells of the score maps per pixel of the RoIs, 1 / stride.
        trans_std: an offset of 1 moves a bin by this share of its RoI.
    """

    def __init__(
        self,
        output_dim: int,
        group_size: int = 7,
        pooled_size: int | None = None,
        part_size: int | None = None,
        sample_per_part: int = 4,
        spatial_scale: float = 1 / 16,
        trans_std: float = 0.1,
    ):
        super().__init__()
        pooled_size = group_size if pooled_size is None else pooled_size
        part_size = pooled_size if part_size is None else part_size
        check_counts(
            output_dim=output_dim,
            group_size=group_size,
            pooled_size=pooled_size,
            part_size=part_size,
            sample_per_part=sample_per_part,
        )
        self.output_dim, self.group_size = output_dim, group_size
        self.pooled_size, self.part_size = pooled_size, part_size
        self.output_size = (pooled_size, pooled_size)  # mmdet's extractors read it
        self.sample_per_part, self.spatial_scale, self.trans_std = sample_per_part, float(spatial_scale), trans_std

    def forward(
        self,
        input: Tensor,  # [B, output_dim*group_size**2, H, W]
        rois: Tensor,  # [R, 5]
        offset: Tensor | None = None,  # [R, 2*K, part_size, part_size]
    ) -> Tensor:  # [R, output_dim, pooled_size, pooled_size]
        return deform_ps_roi_pool(
            input,
            rois,
            offset,
            self.spatial_scale,
            self.output_dim,
            self.group_size,
            self.pooled_size,
            self.part_size,
            self.sample_per_part,
            self.trans_std,
        )

    def extra_repr(self) -> str:
        return (
            f'{self.output_dim}, group_size={self.group_size}, pooled_size={self.pooled_size}, '
            f'part_size={self.part_size}, sample_per_part={self.sample_per_part}, '
            f'spatial_scale={self.spatial_scale:.6g}, trans_std={self.trans_std}'
        )


@MODELS.register_module()
class DeformPSRoIPoolPack(nn.Module):
    """Deformable position-sensitive RoI pooling (DCN, arXiv:1703.06211, section 2.2; official code's R-FCN).

    One 1 x 1 convolution makes score maps of the features, another one fields of offsets, 0 at first; the fields are
    pooled like score maps, without offsets, and say by how much each bin moves. The official code gives both the
    learning rate of the rest.

    Args:
        in_channels: channels of the features.
        output_dim: channels of the result: classes and background, or coordinates.
        offset_classes: sets of output_dim / offset_classes channels with offsets of their own: in the official code one
            a class for the scores, 1 for the boxes. 0: no offsets, which is plain R-FCN.
        kwargs: as for ``DeformPSRoIPool``.
    """

    def __init__(self, in_channels: int, output_dim: int, offset_classes: int = 1, **kwargs):
        super().__init__()
        check_counts(in_channels=in_channels)
        check_counts(0, offset_classes=offset_classes)
        if offset_classes and output_dim % offset_classes:
            raise ValueError(f'offset_classes must divide output_dim = {output_dim}, got {offset_classes}')
        self.pool = DeformPSRoIPool(output_dim, **kwargs)
        self.output_size = self.pool.output_size
        maps = self.pool.group_size**2
        self.conv = nn.Conv2d(in_channels, output_dim * maps, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)
        self.conv_offset = self.pool_offset = None
        if offset_classes:
            part_size = self.pool.part_size
            self.pool_offset = DeformPSRoIPool(2 * offset_classes, **{**kwargs, 'pooled_size': part_size})
            self.conv_offset = nn.Conv2d(in_channels, 2 * offset_classes * maps, 1)
            nn.init.zeros_(self.conv_offset.weight)
            nn.init.zeros_(self.conv_offset.bias)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # [B, C, H, W], [R, 5] -> [R, output_dim, h, w]
        offset = None if self.conv_offset is None else self.pool_offset(self.conv_offset(input), rois)
        return self.pool(self.conv(input), rois, offset)
