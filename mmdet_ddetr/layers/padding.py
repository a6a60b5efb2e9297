"""Which cells of the feature maps are padding."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from mmdet.structures import OptSampleList, SampleList
from torch import Tensor

Shape = tuple[int, int]  # (height, width)


def is_padded(batch_data_samples: OptSampleList) -> bool:
    """Whether images of the batch are smaller than its tensor."""
    if not batch_data_samples or torch.onnx.is_in_onnx_export():
        return False
    whole = tuple(batch_data_samples[0].batch_input_shape)
    return any(tuple(sample.img_shape[:2]) != whole for sample in batch_data_samples)


def padding_masks(
    spatial_shapes: list[Shape], batch_data_samples: OptSampleList, device: torch.device, own_shapes: bool = False
) -> list[Tensor | None]:
    """Masks of the padding that makes a batch of images of different sizes, per feature map.

    Args:
        spatial_shapes: (H, W) of each map.
        batch_data_samples: their ``img_shape`` and ``batch_input_shape`` tell the padding; None: no padding.
        own_shapes: the maps are of :func:`on_own_maps`; leave as many cells as those of the image alone have. By
            default the mask of the pixels is resized to the map, as in the official code, and where the batch's size is
            no multiple of the stride, an image may have a row or a column more than alone.

    Returns:
        Per map [B, H, W], True = padding; None for all where no image of the batch is padded.
    """
    if not is_padded(batch_data_samples):
        return [None] * len(spatial_shapes)
    if own_shapes:
        shapes = shapes_on_own_maps(spatial_shapes, batch_data_samples)
        if all(own == whole for level, whole in zip(shapes, spatial_shapes) for own in level):
            return [None] * len(spatial_shapes)
        return [_outside(own, whole, device).bool() for own, whole in zip(shapes, spatial_shapes)]
    images = [tuple(sample.img_shape[:2]) for sample in batch_data_samples]
    pixels = _outside(images, batch_data_samples[0].batch_input_shape, device)
    return [F.interpolate(pixels[None], size=shape)[0].bool() for shape in spatial_shapes]


def joined_mask(masks: list[Tensor | None]) -> Tensor | None:  # [B, H*W] per level -> [B, S]
    """The masks of several levels as that of their cells, one level after the other."""
    return None if masks[0] is None else torch.cat(masks, 1)


def sizes_in_cells(
    spatial_shapes: list[Shape], batch_data_samples: OptSampleList, device: torch.device, own_shapes: bool = False
) -> Tensor:  # [B or 1, L, 2]
    """(width, height) of the unpadded images in cells of each map, no whole numbers in general.

    Args:
        spatial_shapes, own_shapes: as in :func:`padding_masks`.
        batch_data_samples: tell the images' sizes; None: the images end where the first map does.
    """
    if batch_data_samples:
        images = [tuple(sample.img_shape[:2]) for sample in batch_data_samples]
        whole = _largest(images) if own_shapes else batch_data_samples[0].batch_input_shape
    else:
        whole = spatial_shapes[0]
        images = [whole]
    images, shapes, whole = (torch.tensor(x, dtype=torch.float32) for x in (images, spatial_shapes, tuple(whole)))
    # The smallest power of two that can be, by tensors: the shapes of an exported program are symbols.
    stride = 2 ** (whole / shapes).log2().ceil()  # [L, 2]
    is_power = (whole / stride).ceil() == shapes
    # The larger of both sides' counts: a short side can have several strides.
    pixels = torch.where(is_power, stride, whole / shapes).amax(1, keepdim=True)
    return (images[:, None].flip(-1) / pixels).to(device, non_blocking=True)


def own_map_shapes(spatial_shapes: list[Shape], images: list[Shape], whole: Shape) -> list[list[Shape]]:
    """Per map, the (h, w) that the map of each image alone would have.

    Args:
        spatial_shapes: (H, W) of each map.
        images: (h, w) of each image in px.
        whole: (H, W) in px of what the maps are of.
    """
    H, W = whole
    return [[(_cells(h, H, rows), _cells(w, W, columns)) for h, w in images] for rows, columns in spatial_shapes]


def shapes_on_own_maps(spatial_shapes: list[Shape], batch_data_samples: SampleList) -> list[list[Shape]]:
    """:func:`own_map_shapes` of maps that :func:`on_own_maps` gives."""
    images = [tuple(sample.img_shape[:2]) for sample in batch_data_samples]
    return own_map_shapes(spatial_shapes, images, _largest(images))


def on_own_maps(
    neck: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    maps: Sequence[Tensor],  # [B, C, H, W] per level of the backbone
    batch_data_samples: SampleList,
) -> tuple[Tensor, ...]:  # [B, C, H, W] per level of the neck
    """Run a neck on each image's own part of the maps, so that no norm and no convolution of it sees padding."""
    images = [tuple(sample.img_shape[:2]) for sample in batch_data_samples]
    whole = batch_data_samples[0].batch_input_shape
    shapes = own_map_shapes([tuple(level.shape[-2:]) for level in maps], images, whole)
    outputs = [
        neck(tuple(level[i : i + 1, :, : own[i][0], : own[i][1]] for level, own in zip(maps, shapes)))
        for i in range(len(images))
    ]
    return tuple(_pad_together(images) for images in zip(*outputs))


def _largest(shapes: list[Shape]) -> Shape:
    return max(h for h, _ in shapes), max(w for _, w in shapes)


def _pad_together(images: Sequence[Tensor]) -> Tensor:  # [1, C, h, w] each -> [B, C, H, W]
    H, W = _largest([image.shape[-2:] for image in images])
    return torch.cat([F.pad(image, (0, W - image.shape[-1], 0, H - image.shape[-2])) for image in images])


def crop_levels(x: Tensor, spatial_shapes: Sequence[Shape], own: Sequence[Shape]) -> Tensor:  # [B, S, C] -> [B, s, C]
    """The upper left (h, w) of each of the levels, whose cells stand one after the other."""
    levels = x.split([H * W for H, W in spatial_shapes], 1)
    maps = (level.unflatten(1, shape)[:, :h, :w] for level, shape, (h, w) in zip(levels, spatial_shapes, own))
    return torch.cat([cells.flatten(1, 2) for cells in maps], 1)


def pad_levels(x: Tensor, own: Sequence[Shape], spatial_shapes: Sequence[Shape]) -> Tensor:  # [B, s, C] -> [B, S, C]
    """The inverse of :func:`crop_levels`, with zeros in the padding."""
    levels = x.split([h * w for h, w in own], 1)
    maps = (
        F.pad(level.unflatten(1, (h, w)), (0, 0, 0, W - w, 0, H - h))
        for level, (h, w), (H, W) in zip(levels, own, spatial_shapes)
    )
    return torch.cat([cells.flatten(1, 2) for cells in maps], 1)


def _cells(own: int, whole: int, cells: int) -> int:
    """Of a map with ``cells`` along a side of ``whole`` px: how many a side of ``own`` px has."""
    stride = 1
    while -(-whole // stride) > cells:
        stride *= 2
    if -(-whole // stride) == cells:
        return -(-own // stride)
    return -(-own * cells // whole)  # the stride is no power of two


def _outside(shapes: list[Shape], whole: Shape, device: torch.device) -> Tensor:  # [B, H, W]
    """1 outside the upper left (h, w) of each image, else 0."""
    mask = torch.ones(len(shapes), *whole, device=device)
    for i, (h, w) in enumerate(shapes):
        mask[i, :h, :w] = 0
    return mask
