"""Which cells of the feature maps are padding."""

import torch
import torch.nn.functional as F
from mmdet.structures import OptSampleList
from torch import Tensor


def padding_masks(
    spatial_shapes: list[tuple[int, int]], batch_data_samples: OptSampleList, device: torch.device
) -> list[Tensor | None]:
    """Masks of the padding that makes a batch of images of different sizes, per feature map.

    Args:
        spatial_shapes: (H, W) of each map.
        batch_data_samples: their ``img_shape`` and ``batch_input_shape`` tell the padding; None: no padding.

    Returns:
        Per map [B, H, W], True = padding; None for all where no image of the batch is padded.
    """
    if not batch_data_samples or torch.onnx.is_in_onnx_export():
        return [None] * len(spatial_shapes)
    H, W = batch_data_samples[0].batch_input_shape
    shapes = [tuple(sample.img_shape[:2]) for sample in batch_data_samples]
    if all(shape == (H, W) for shape in shapes):
        return [None] * len(spatial_shapes)
    mask = torch.ones(1, len(shapes), H, W, device=device)
    for i, (h, w) in enumerate(shapes):
        mask[0, i, :h, :w] = 0
    return [F.interpolate(mask, size=shape)[0].bool() for shape in spatial_shapes]
