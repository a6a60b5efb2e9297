"""Each image's own part of the maps of a padded batch, where no norm and no convolution sees the padding."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from mmdet.models.necks import ChannelMapper
from mmdet.structures import OptSampleList, SampleList
from torch import Tensor, nn

from .padding import ImageSizes, Shape, image_sizes, is_padded, numbers, outside, sizes_in_cells, strides


def own_map_shapes(spatial_shapes: Sequence[Shape], images: list[Shape], whole: Shape) -> list[list[Shape]]:
    """Per map, the (h, w) that the map of each image alone would have.

    Args:
        spatial_shapes: (H, W) of each map.
        images: (h, w) of each image in px.
        whole: (H, W) in px of what the maps are of.
    """
    H, W = whole
    return [[(_cells(h, H, rows), _cells(w, W, columns)) for h, w in images] for rows, columns in spatial_shapes]


def shapes_on_own_maps(
    spatial_shapes: Sequence[Shape], batch_data_samples: SampleList | ImageSizes
) -> list[list[Shape]]:
    """:func:`own_map_shapes` of maps that :func:`on_own_maps` gives.

    Raises:
        NotImplementedError: the sizes are tensors, those of an exported program.
    """
    if isinstance(batch_data_samples, ImageSizes):
        raise NotImplementedError(
            'own_maps=True has no form for all image sizes in an encoder of convolutions: take own_maps=False'
        )
    images = [tuple(sample.img_shape[:2]) for sample in batch_data_samples]
    return own_map_shapes(spatial_shapes, images, _largest(images))


def own_masks(
    spatial_shapes: Sequence[Shape], batch_data_samples: OptSampleList | ImageSizes, device: torch.device
) -> list[Tensor | None]:
    """As :func:`padding_masks`, of maps that :func:`on_own_maps` gives: what lies outside of :func:`own_map_shapes`."""
    if isinstance(batch_data_samples, ImageSizes):
        limits = _cells_of_images(spatial_shapes, batch_data_samples)
        return [outside(own, shape) for own, shape in zip(limits.unbind(1), spatial_shapes)]
    shapes = shapes_on_own_maps(spatial_shapes, batch_data_samples) if is_padded(batch_data_samples) else []
    if all(own == whole for level, whole in zip(shapes, spatial_shapes) for own in level):
        return [None] * len(spatial_shapes)
    limits = numbers(shapes).to(device, non_blocking=True)  # [L, B, 2]
    return [outside(own, whole) for own, whole in zip(limits, spatial_shapes)]


def own_sizes_in_cells(
    spatial_shapes: Sequence[Shape], batch_data_samples: OptSampleList | ImageSizes, device: torch.device
) -> Tensor:  # [B or 1, L, 2]
    """As :func:`sizes_in_cells`, of maps that :func:`on_own_maps` gives."""
    if batch_data_samples and not isinstance(batch_data_samples, ImageSizes):
        largest = _largest([tuple(sample.img_shape[:2]) for sample in batch_data_samples])
        batch_data_samples = replace(image_sizes(batch_data_samples, device), whole=largest)
    return sizes_in_cells(spatial_shapes, batch_data_samples, device)


def on_own_maps(
    neck: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    maps: Sequence[Tensor],  # [B, C, H, W] per level of the backbone
    batch_data_samples: SampleList | ImageSizes,
) -> tuple[Tensor, ...]:  # [B, C, H, W] per level of the neck
    """Run a neck on each image's own part of the maps, so that no norm and no convolution of it sees padding.

    The maps are as large as those of the largest image; of an exported program's, they keep the batch's size.

    Raises:
        NotImplementedError: of an exported program the neck must be mmdet's ``ChannelMapper``.
    """
    if isinstance(batch_data_samples, ImageSizes):
        return _by_masks(neck, maps, batch_data_samples)
    images = [tuple(sample.img_shape[:2]) for sample in batch_data_samples]
    whole = batch_data_samples[0].batch_input_shape
    shapes = own_map_shapes([tuple(level.shape[-2:]) for level in maps], images, whole)
    outputs = [
        neck(tuple(level[i : i + 1, :, : own[i][0], : own[i][1]] for level, own in zip(maps, shapes)))
        for i in range(len(images))
    ]
    return tuple(_pad_together(images) for images in zip(*outputs))


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


# --- the same for any sizes, in one program: masks instead of parts -------------------------------------------------


def _by_masks(neck: nn.Module, maps: Sequence[Tensor], sizes: ImageSizes) -> tuple[Tensor, ...]:
    """ChannelMapper with zeros for the padding before each convolution, and norms of the cells that are image."""
    if not isinstance(neck, ChannelMapper):
        raise NotImplementedError(
            f'own_maps=True with a neck of type {type(neck).__name__} has no form for all image sizes: take '
            'ChannelMapper or own_maps=False'
        )

    def apply(module: nn.Module, x: Tensor) -> Tensor:
        y = module.conv(_zero_padding(x, sizes))
        if module.with_norm:
            y = _norm(module.norm, y, sizes)
        return module.activate(y) if module.with_activation else y

    outputs = [apply(conv, level) for conv, level in zip(neck.convs, maps, strict=True)]
    for index, conv in enumerate(neck.extra_convs or []):
        outputs.append(apply(conv, maps[-1] if index == 0 else outputs[-1]))
    return tuple(_zero_padding(level, sizes) for level in outputs)


def _zero_padding(x: Tensor, sizes: ImageSizes) -> Tensor:  # [B, C, H, W]
    return x.masked_fill(_own_mask(x, sizes)[:, None], 0.0)


def _own_mask(x: Tensor, sizes: ImageSizes) -> Tensor:  # [B, H, W]
    return own_masks([tuple(x.shape[-2:])], sizes, x.device)[0]


def _norm(norm: nn.Module, x: Tensor, sizes: ImageSizes) -> Tensor:  # [B, C, H, W]
    if not isinstance(norm, nn.GroupNorm):  # of the norms here, only this one takes statistics of the cells
        return norm(x)
    image = ~_own_mask(x, sizes)[:, None, None]  # [B, 1, 1, H, W]
    grouped = x.unflatten(1, (norm.num_groups, -1)).float()  # [B, G, C/G, H, W]
    count = image.sum((2, 3, 4), keepdim=True) * grouped.shape[2]
    mean = (grouped * image).sum((2, 3, 4), keepdim=True) / count
    centred = (grouped - mean) * image
    deviation = (centred.square().sum((2, 3, 4), keepdim=True) / count + norm.eps).sqrt()
    normed = (centred / deviation).flatten(1, 2).to(x.dtype)
    return normed if norm.weight is None else normed * norm.weight[:, None, None] + norm.bias[:, None, None]


def _cells_of_images(spatial_shapes: Sequence[Shape], sizes: ImageSizes) -> Tensor:  # [B, L, 2]
    """:func:`own_map_shapes` in tensors."""
    found = *strides(spatial_shapes, sizes.whole), numbers(spatial_shapes)
    stride, is_power, shapes = (x.to(sizes.images.device) for x in found)  # [L, 2] each
    images, whole = sizes.images[:, None], numbers(sizes.whole).to(sizes.images.device)  # [B, 1, 2], [2]
    return torch.where(is_power, (images / stride).ceil(), (images * shapes / whole).ceil())


# --- in whole numbers ------------------------------------------------------------------------------------------------


def _largest(shapes: list[Shape]) -> Shape:
    return max(h for h, _ in shapes), max(w for _, w in shapes)


def _pad_together(images: Sequence[Tensor]) -> Tensor:  # [1, C, h, w] each -> [B, C, H, W]
    H, W = _largest([image.shape[-2:] for image in images])
    return torch.cat([F.pad(image, (0, W - image.shape[-1], 0, H - image.shape[-2])) for image in images])


def _cells(own: int, whole: int, cells: int) -> int:
    """Of a map with ``cells`` along a side of ``whole`` px: how many a side of ``own`` px has."""
    stride = 1
    while -(-whole // stride) > cells:
        stride *= 2
    if -(-whole // stride) == cells:
        return -(-own // stride)
    return -(-own * cells // whole)  # the stride is no power of two
