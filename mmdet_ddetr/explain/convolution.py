"""Where deformable convolutions sample, and where from the cells that they read were sampled themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmcv.ops.deform_conv import DeformConv2d, DeformConv2dPack
from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2d, ModulatedDeformConv2dPack
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mmdet_ddetr.layers import DCN, DCNv2

KINDS = DCN | DCNv2 | DeformConv2d | ModulatedDeformConv2d
# in these parts of a detector a convolution reads what the one before has written
IN_SEQUENCE = ('backbone.', 'neck.', 'roi_head.shared_head.')


@dataclass(frozen=True)
class SampledConv:
    """One call of a deformable convolution with G groups of offsets and T taps."""

    name: str  # of the module in the detector
    offset: Tensor  # [B, G*T*2, Ho, Wo], (y, x) of each tap, in cells of the input
    mask: Tensor | None  # [B, G*T, Ho, Wo], the factor of each tap (DCNv2)
    input_size: tuple[int, int]  # (H, W)
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def output_size(self) -> tuple[int, int]:  # (Ho, Wo)
        return tuple(self.offset.shape[-2:])

    @property
    def num_taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def num_groups(self) -> int:
        return self.offset.shape[1] // (2 * self.num_taps)

    def taps(
        self,
        image: int,
        cells: Tensor,  # [N, 2], (row, column) in the output
    ) -> tuple[Tensor, Tensor]:
        """Points [N, G, T, 2], (x, y) in the input, 1.0 = its far edge, and their factors [N, G, T]."""
        taps = torch.stack(torch.meshgrid(*map(torch.arange, self.kernel_size), indexing='ij'), -1).view(-1, 2)
        stride, padding, dilation = (torch.tensor(_pair(x)) for x in (self.stride, self.padding, self.dilation))
        at = (slice(None), *cells.unbind(-1))
        offset = self.offset[image].float().cpu()[at].T.reshape(len(cells), self.num_groups, -1, 2)
        points = (cells * stride - padding)[:, None, None] + taps * dilation + offset  # 0 = the first cell's centre
        points = ((points + 0.5) / torch.tensor(self.input_size)).flip(-1)
        if self.mask is None:
            return points, torch.ones(points.shape[:-1])
        return points, self.mask[image].float().cpu()[at].T.reshape(points.shape[:-1])


def follow(
    convs: Sequence[SampledConv],  # in the order of computing
    image: int,
    group: int,
    cell: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """The points that a cell of the last convolution's output comes from, all the way through the others.

    A point of one layer is followed from the cell of the layer before that it lies in. Outside the map there are zeros,
    which come from nowhere: these points are NaN, their weight 0.

    Args:
        image: its place in the batch.
        group: the group of offsets, in every layer.
        cell: (row, column).

    Returns:
        Points [P, 2], (x, y) in the first convolution's input, 1.0 = its far edge, P the product of all numbers of
        taps; and weights [P], the products of the factors along the way.
    """
    points, weights = None, torch.ones(1)
    cells, inside = torch.tensor([cell]), torch.ones(1, dtype=torch.bool)
    for conv in reversed(convs):
        if points is not None:
            size = torch.tensor(conv.output_size)
            inside = ((points >= 0) & (points < 1)).all(-1)  # not where NaN
            cells = torch.where(inside[:, None], (points.flip(-1) * size).floor(), 0).long()
        points, factors = conv.taps(image, cells)
        points = points[:, group].masked_fill(~inside[:, None, None], float('nan')).flatten(0, 1)
        weights = (weights * inside)[:, None].mul(factors[:, group]).flatten()
    return points, weights


def short_name(name: str) -> str:
    """Without the part of the detector, and not longer than fits beside a picture."""
    for part in IN_SEQUENCE:
        name = name.removeprefix(part)
    return name if len(name) <= 20 else f'…{name[-19:]}'


def chain(convs: Sequence[SampledConv], index: int, depth: int) -> list[SampledConv]:
    """A convolution and up to ``depth - 1`` before it that it reads through, in the order of computing."""
    for part in IN_SEQUENCE:
        if convs[index].name.startswith(part):
            return [conv for conv in convs[: index + 1] if conv.name.startswith(part)][-depth:]
    return [convs[index]]  # of a head, whose convolutions stand side by side


def last_of_stages(convs: Sequence[SampledConv]) -> list[int]:
    """The last convolution of each size of maps, the coarsest first."""
    last = {conv.output_size: index for index, conv in enumerate(convs)}
    return sorted(last.values(), key=lambda index: convs[index].output_size)


def watch(model: nn.Module, calls: list[SampledConv]) -> list:
    """Add each call of a deformable convolution to ``calls``. Returns the hooks."""
    return [
        module.register_forward_pre_hook(_hook(name, calls))
        for name, module in model.named_modules()
        if isinstance(module, KINDS)
    ]


def _hook(name: str, calls: list[SampledConv]):
    def hook(module, args):
        with torch.no_grad():
            offset, mask = _points(module, *args)
        geometry = (_pair(getattr(module, key)) for key in ('kernel_size', 'stride', 'padding', 'dilation'))
        calls.append(SampledConv(name, offset, mask, tuple(args[0].shape[-2:]), *geometry))

    return hook


def _points(module: nn.Module, x: Tensor, offset: Tensor | None = None, mask: Tensor | None = None):
    """Offsets and factors: what a layer finds itself, or what it is given."""
    if isinstance(module, DCN | DCNv2):
        return module.points(x)
    if isinstance(module, DeformConv2dPack):
        return module.conv_offset(x), None
    if isinstance(module, ModulatedDeformConv2dPack):
        *offset, mask = module.conv_offset(x).chunk(3, 1)
        return torch.cat(offset, 1), mask.sigmoid()
    return offset, mask
