"""A detector as one program: pixels and sizes of images in, detections out."""

import torch
from torch import Tensor, nn

from mmdet_ddetr.detectors.base import BaseDETR
from mmdet_ddetr.detectors.segmentation import WithMasks
from mmdet_ddetr.layers import ImageSizes
from mmdet_ddetr.layers.padding import outside

from .description import ExportError

OUTPUTS = 'boxes', 'scores', 'labels', 'masks'
EXAMPLE = 2, 256, 384  # images, height and width: multiples of most divisors
MOST_IMAGES, LARGEST_SIDE = 4096, 16384
SMALLEST_SIDE = 65  # every map then has more than one row and column, which PyTorch's shapes need


class DetectionProgram(nn.Module):
    """What is exported: normalisation, padding, the detector, its best detections. There is no NMS in any of them.

    Args:
        model: a detector of this package. It is set to inference, and its parameters stay its own. Heights and
            widths of batches are multiples of its data preprocessor's ``pad_size_divisor``.

    Raises:
        ExportError: another model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if not isinstance(model, BaseDETR):
            raise ExportError(
                f'model must be a detector of mmdet_ddetr, got {type(model).__name__}, which has no exported form'
            )
        self.detector = model
        self.eval().requires_grad_(False)
        preprocessor = model.data_preprocessor
        normalises, self.pad_value = preprocessor._enable_normalize, float(preprocessor.pad_value)
        self.divisor = preprocessor.pad_size_divisor
        self.reads_bgr = not preprocessor._channel_conversion  # mmdet's images are BGR before it
        self.register_buffer('mean', preprocessor.mean if normalises else torch.zeros(3, 1, 1), False)
        self.register_buffer('std', preprocessor.std if normalises else torch.ones(3, 1, 1), False)

    @property
    def has_masks(self) -> bool:
        return isinstance(self.detector, WithMasks)

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] fp32
        sizes: Tensor,  # [B, 2] int64
    ) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: RGB, from 0 to 255. What lies right of and below an image is not looked at.
            sizes: (height, width) of each image in pixels.

        Returns:
            boxes [B, N, 4], (x1, y1, x2, y2) in pixels of ``images``; scores and labels [B, N], by falling score; of a
            detector with masks their logits [B, N, H/4, W/4], too.
        """
        if self.divisor > 1 and torch.compiler.is_exporting():
            # All of it, but in shapes that are seen to be multiples, as are those of the maps then.
            for axis in (2, 3):
                images = images.narrow(axis, 0, images.shape[axis] // self.divisor * self.divisor)
        batch = ImageSizes(sizes.float(), tuple(images.shape[-2:]))
        images = images.flip(1) if self.reads_bgr else images
        images = (images - self.mean) / self.std
        images = images.masked_fill(outside(batch.images, batch.whole)[:, None], self.pad_value)
        return self.detector.detect(images, batch)


def trace(
    program: DetectionProgram,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
):
    """``torch.export`` of a program.

    Args:
        size: (height, width) of ``images``; None: any from 65 px on that the detector's divisor allows.
        batch: number of images; None: any.

    Returns:
        the ``torch.export.ExportedProgram``, in whose graph this package's ops stand as such.
    """
    height, width = size or EXAMPLE[1:]
    images = torch.zeros(batch or EXAMPLE[0], 3, height, width, device=program.mean.device)
    sizes = images.new_tensor([[height, width]], dtype=torch.int64).repeat(len(images), 1)
    dynamic, divisor = dict(images={}, sizes={}), program.divisor
    if batch is None:
        dynamic['images'][0] = dynamic['sizes'][0] = torch.export.Dim('batch', max=MOST_IMAGES)
    if size is None:
        for axis, name in {2: 'height', 3: 'width'}.items():
            dim = torch.export.Dim(name, min=-(-SMALLEST_SIDE // divisor), max=LARGEST_SIDE // divisor)
            dynamic['images'][axis] = divisor * dim if divisor > 1 else dim
    with torch.no_grad():
        return torch.export.export(program, (images, sizes), dynamic_shapes=dynamic)
