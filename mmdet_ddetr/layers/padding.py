"""Which cells of the feature maps are padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet.structures import OptSampleList, SampleList
from torch import Tensor

Shape = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class ImageSizes:
    """The sizes of a batch's images in a tensor: what an exported program has in place of data samples.

    Whatever asks ``batch_data_samples`` for padding takes it instead.
    """

    images: Tensor  # [B, 2] fp32, (h, w) in px
    whole: Shape  # (H, W) of the batch's tensor in px


def is_padded(batch_data_samples: OptSampleList | ImageSizes) -> bool:
    """Whether images of the batch are smaller than its tensor, or may be."""
    if isinstance(batch_data_samples, ImageSizes):
        return True
    if not batch_data_samples or torch.onnx.is_in_onnx_export():
        return False
    whole = tuple(batch_data_samples[0].batch_input_shape)
    return any(tuple(sample.img_shape[:2]) != whole for sample in batch_data_samples)


def image_sizes(batch_data_samples: SampleList | ImageSizes, device: torch.device) -> ImageSizes:
    """What the data samples tell, without a device sync."""
    if isinstance(batch_data_samples, ImageSizes):
        return batch_data_samples
    images = numbers([tuple(sample.img_shape[:2]) for sample in batch_data_samples])
    return ImageSizes(images.to(device, non_blocking=True), tuple(batch_data_samples[0].batch_input_shape))


def padding_masks(
    spatial_shapes: Sequence[Shape], batch_data_samples: OptSampleList | ImageSizes, device: torch.device
) -> list[Tensor | None]:
    """Masks of the padding that makes a batch of images of different sizes, per feature map.

    A cell is what that pixel is which resizing the mask of the pixels to the map takes for it, as the official code
    does. Where the batch's size is no multiple of the stride, an image may have a row or a column more than alone.

    Args:
        spatial_shapes: (H, W) of each map.
        batch_data_samples: their ``img_shape`` and ``batch_input_shape`` tell the padding; None: no padding.

    Returns:
        Per map [B, H, W], True = padding; None for all where no image of the batch is padded.
    """
    if not is_padded(batch_data_samples):
        return [None] * len(spatial_shapes)
    sizes = image_sizes(batch_data_samples, device)
    steps = _steps(spatial_shapes, sizes.whole).to(device, non_blocking=True)
    return [outside(sizes.images, shape, pixels) for shape, pixels in zip(spatial_shapes, steps)]


def outside(limits: Tensor, shape: Shape, steps: Tensor | None = None) -> Tensor:  # [B, H, W]
    """True outside the upper left (h, w) of each map.

    Args:
        limits: (h, w) [B, 2] of each.
        shape: (H, W).
        steps: what (h, w) counts in a row and a column of the map, [2]; None: rows and columns.
    """
    rows, columns = (torch.arange(cells, dtype=limits.dtype, device=limits.device) for cells in shape)
    if steps is not None:
        rows, columns = (rows * steps[0]).floor(), (columns * steps[1]).floor()
    return (rows >= limits[:, :1])[:, :, None] | (columns >= limits[:, 1:])[:, None]


def joined_mask(masks: list[Tensor | None]) -> Tensor | None:  # [B, H*W] per level -> [B, S]
    """The masks of several levels as that of their cells, one level after the other."""
    return None if masks[0] is None else torch.cat(masks, 1)


def sizes_in_cells(
    spatial_shapes: Sequence[Shape], batch_data_samples: OptSampleList | ImageSizes, device: torch.device
) -> Tensor:  # [B or 1, L, 2]
    """(width, height) of the unpadded images in cells of each map, no whole numbers in general.

    Args:
        spatial_shapes: as in :func:`padding_masks`.
        batch_data_samples: tell the images' sizes; None: the images end where the first map does.
    """
    if batch_data_samples:
        sizes = image_sizes(batch_data_samples, device)
    else:
        sizes = ImageSizes(numbers([spatial_shapes[0]]).to(device, non_blocking=True), spatial_shapes[0])
    stride, is_power = strides(spatial_shapes, sizes.whole)
    # The larger of both sides' counts: a short side can have several strides.
    pixels = torch.where(is_power, stride, _steps(spatial_shapes, sizes.whole)).amax(1, keepdim=True)  # [L, 1]
    return sizes.images[:, None].flip(-1) / pixels.to(device, non_blocking=True)


def strides(spatial_shapes: Sequence[Shape], whole: Shape) -> tuple[Tensor, Tensor]:  # [L, 2] each
    """The smallest power of two by which ``whole`` can be divided to give each map, and whether it does.

    By tensors, on the host: the shapes of an exported program are symbols.
    """
    stride = 2 ** _steps(spatial_shapes, whole).log2().ceil()
    return stride, (numbers(whole) / stride).ceil() == numbers(spatial_shapes)


def _steps(spatial_shapes: Sequence[Shape], whole: Shape) -> Tensor:  # [L, 2]
    """Pixels of a row and of a column of each map."""
    return numbers(whole) / numbers(spatial_shapes)


def numbers(values: Sequence) -> Tensor:
    """Whole numbers as fp32, on the host."""
    return torch.tensor(values, dtype=torch.float32)
