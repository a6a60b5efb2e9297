"""Where deformable RoI pooling puts the bins of the regions that the detections come from."""

from dataclasses import dataclass

import torch
from mmcv.ops.deform_roi_pool import DeformRoIPoolPack as MMCVDeformRoIPoolPack
from mmcv.ops.deform_roi_pool import ModulatedDeformRoIPoolPack as MMCVModulatedDeformRoIPoolPack
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, nn

from mmdet_ddetr.layers import DeformPSRoIPoolPack, DeformRoIPoolPack
from mmdet_ddetr.ops import deform_roi_pool

PACKS = DeformRoIPoolPack | MMCVDeformRoIPoolPack | MMCVModulatedDeformRoIPoolPack
KINDS = PACKS | DeformPSRoIPoolPack


@dataclass(frozen=True)
class PooledRoIs:
    """One call of a pooling of R regions into h x w bins."""

    name: str  # of the module in the detector
    rois: Tensor  # [R, 5], number of the image and corners (x1, y1, x2, y2) in px of the input
    edges: Tensor  # [R, 4], of the grid of bins before they move, in px
    shifts: Tensor  # [R, K, 2, h, w], (x, y) of each bin, in widths and heights of its region; K classes or 1
    mask: Tensor | None  # [R, h, w], the factor of each bin (modulated pooling)

    def bins(self, roi: int, label: int) -> Tensor:  # [h*w, 4]
        """Corners (x1, y1, x2, y2) of a region's bins in px; ``label`` matters where each class moves its own."""
        x1, y1, x2, y2 = self.edges[roi]
        _, K, _, h, w = self.shifts.shape
        shift = self.shifts[roi, label if K > 1 else 0].flatten(1).T * torch.stack([x2 - x1, y2 - y1])  # [h*w, 2]
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
        size = torch.stack([(x2 - x1) / w, (y2 - y1) / h])
        low = torch.stack([x1, y1]) + torch.stack([columns, rows], -1).view(-1, 2) * size + shift
        return torch.cat([low, low + size], -1)


@dataclass(frozen=True)
class Regions:
    """What a box head made of its regions."""

    rois: Tensor  # [R, 5]
    boxes: Tensor  # [R, 1 or classes, 4], (x1, y1, x2, y2) in px of the input


def region_of(regions: Regions, image: int, label: int, box: Tensor) -> int:
    """The region that a detection comes from: whose box is the detection's, up to the clipping at the image's edge.

    Args:
        image: its number in the batch.
        box: [4], (x1, y1, x2, y2) in px of the input.
    """
    boxes = regions.boxes[:, label if regions.boxes.shape[1] > 1 else 0]
    distance = (boxes - box).abs().sum(-1)
    return int(torch.where(regions.rois[:, 0] == image, distance, torch.inf).argmin())


def watch(model: nn.Module, pools: list[PooledRoIs], regions: list[Regions]) -> list:
    """Add each call of a deformable pooling to ``pools``, and of a box head to ``regions``. Returns the hooks."""
    handles = [
        module.register_forward_pre_hook(_pool_hook(name, pools))
        for name, module in model.named_modules()
        if isinstance(module, KINDS)
    ]
    if not handles:
        return []
    extracted = []  # the regions of the latest extractor
    for module in model.modules():
        if isinstance(module, BaseRoIExtractor):
            handles.append(module.register_forward_pre_hook(lambda _, args: extracted.append(args[1])))
        elif isinstance(module, BBoxHead):
            handles.append(module.register_forward_hook(_head_hook(extracted, regions)))
    return handles


def _pool_hook(name: str, pools: list[PooledRoIs]):
    @torch.no_grad()
    def hook(module, args):
        features, rois = args
        if isinstance(module, PACKS):
            (h, w), gamma, mask = module.output_size, module.gamma, None
            options = module.output_size, module.spatial_scale, module.sampling_ratio
            pooled = deform_roi_pool(features, rois, None, *options).flatten(1)
            offset, edges = module.offset_fc(pooled), rois[:, 1:]
            if hasattr(module, 'mask_fc'):
                mask = module.mask_fc(pooled).view(-1, h, w).float().cpu()
        else:
            h = w = module.pool.part_size
            gamma, mask = module.pool.trans_std, None
            low, high = rois[:, 1:3].round(), rois[:, 3:].round() + 1
            edges = torch.cat([low, torch.maximum(high, low + 0.1 / module.pool.spatial_scale)], -1)
            offset = features.new_zeros(len(rois), 2, h, w)
            if module.conv_offset is not None:
                offset = module.pool_offset(module.conv_offset(features), rois)
        shifts = gamma * offset.float().cpu().reshape(len(rois), -1, 2, h, w)
        pools.append(PooledRoIs(name, rois.cpu(), edges.float().cpu(), shifts, mask))

    return hook


def _head_hook(extracted: list[Tensor], regions: list[Regions]):
    @torch.no_grad()
    def hook(head, args, outputs):
        if len(args) == 1 and not extracted:
            return
        rois = args[1] if len(args) > 1 else extracted[-1]  # R-FCN's head pools itself
        boxes = rois[:, 1:] if outputs[1] is None else head.bbox_coder.decode(rois[:, 1:], outputs[1])
        regions.append(Regions(rois.cpu(), boxes.float().cpu().view(len(rois), -1, 4)))
        extracted.clear()

    return hook
