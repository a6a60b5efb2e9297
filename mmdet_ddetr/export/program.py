"""A detector as one program: pixels and sizes of images in, detections out."""

import torch
from torch import Tensor, nn

from mmdet_ddetr.detectors.base import BaseDETR
from mmdet_ddetr.detectors.segmentation import WithMasks
from mmdet_ddetr.inference.optimize import other_dtypes
from mmdet_ddetr.layers import ImageSizes
from mmdet_ddetr.layers.padding import outside

from .description import ExportError
from .of_mmdet import MMDET, OfMMDet

OUTPUTS = 'boxes', 'scores', 'labels', 'masks'
EXAMPLE = 2, 256, 384  # images, height and width: multiples of most divisors
MOST_IMAGES, LARGEST_SIDE = 4096, 16384
SMALLEST_SIDE = 65  # every map then has more than one row and column, which PyTorch's shapes need
MMDET_NAMES = ' or '.join(cls.__name__ for cls in MMDET)


class DetectionProgram(nn.Module):
    """What is exported: normalisation, padding, the detector, its best detections. No operator for NMS is among them.

    Args:
        model: a detector of this package, or mmdet's ``DeformableDETR`` or ``DINO``, whose attention modules are
            accelerated. It is set to inference, and its parameters stay its own. Heights and widths of batches are
            multiples of its data preprocessor's ``pad_size_divisor``.

    Raises:
        ExportError: another model, or one whose weights are not in fp32.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if given := other_dtypes(model):
            raise ExportError(
                f'model must have its weights in torch.float32, got {given}: take the model before .half() and the like'
            )
        if type(model) in MMDET:
            self.detector = OfMMDet(model)
        elif isinstance(model, BaseDETR):
            self.detector = model
        else:
            raise ExportError(
                f"{type(model).__name__} cannot be exported: it is no DETR of mmdet_ddetr, nor mmdet's {MMDET_NAMES}"
            )
        self.smallest = smallest_side(self.detector)
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

    def run_once(self) -> None:
        """Detect in a small image: what has no form for tensors says so in a second, where tracing takes a minute."""
        side = -(-self.smallest // self.divisor) * self.divisor
        images = torch.zeros(1, 3, side, side, device=self.mean.device)
        self(images, torch.full((1, 2), side, device=self.mean.device))


def smallest_side(detector: nn.Module) -> int:
    """Height and width in px that a batch must have: mmdet's two-stage detectors need as many cells as queries."""
    side, proposals = SMALLEST_SIDE, getattr(detector, 'num_proposals', 0)
    while sum((-(-side // 2 ** (3 + level))) ** 2 for level in range(detector.num_feature_levels)) < proposals:
        side += 1
    return side


def trace(
    program: DetectionProgram,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
):
    """``torch.export`` of a program.

    Args:
        size: (height, width) of ``images``; None: any from ``program.smallest`` on that the detector's divisor allows.
        batch: number of images; None: any.

    Returns:
        the ``torch.export.ExportedProgram``, in whose graph this package's ops stand as such.
    """
    height, width = size or EXAMPLE[1:]
    images = torch.zeros(EXAMPLE[0] if batch is None else batch, 3, height, width, device=program.mean.device)
    sizes = images.new_tensor([[height, width]], dtype=torch.int64).repeat(len(images), 1)
    dynamic, divisor = dict(images={}, sizes={}), program.divisor
    if batch is None:
        dynamic['images'][0] = dynamic['sizes'][0] = torch.export.Dim('batch', max=MOST_IMAGES)
    if size is None:
        for axis, name in {2: 'height', 3: 'width'}.items():
            dim = torch.export.Dim(name, min=-(-program.smallest // divisor), max=LARGEST_SIDE // divisor)
            dynamic['images'][axis] = divisor * dim if divisor > 1 else dim
    with torch.no_grad():
        return torch.export.export(program, (images, sizes), dynamic_shapes=dynamic)
