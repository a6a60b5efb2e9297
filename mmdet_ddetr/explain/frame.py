"""From the network's normalised coordinates back to pixels of the original image."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """How one original image lies in the network's input: resized, perhaps flipped, then padded right and below.

    Args:
        size: (w, h) in px after resizing, without padding.
        padded_size: (W, H) in px of the batch.
        scale: (x, y) factors of the resizing.
        flip: None, ``'horizontal'``, ``'vertical'`` or ``'diagonal'`` (both).
    """

    size: tuple[int, int]
    padded_size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    flip: str | None = None

    @classmethod
    def of(cls, metainfo: dict) -> 'Frame':
        """Frame of a data sample, from what the pipeline and the data preprocessor noted."""
        h, w = metainfo['img_shape'][:2]
        H, W = metainfo.get('batch_input_shape', (h, w))
        scale = tuple(float(factor) for factor in metainfo.get('scale_factor', (1.0, 1.0)))
        return cls((w, h), (W, H), scale, metainfo.get('flip_direction') if metainfo.get('flip') else None)

    @property
    def image_size(self) -> tuple[float, float]:
        """(w, h) of the original image, up to the rounding of the resizing."""
        return self.size[0] / self.scale[0], self.size[1] / self.scale[1]

    def to_image(
        self,
        points: Tensor,  # [..., 2], (x, y) normalised by the unpadded image
    ) -> Tensor:  # [..., 2]
        """Pixels of the original image; (0, 0) is the corner of its first pixel."""
        return self.unflip(points * points.new_tensor(self.image_size))

    def of_padded(
        self,
        points: Tensor,  # [..., 2], (x, y) normalised by the padded input, as on a feature map
    ) -> Tensor:  # [..., 2]
        """As ``to_image``."""
        return self.to_image(points * points.new_tensor(self.padded_size) / points.new_tensor(self.size))

    def boxes_to_image(
        self,
        boxes: Tensor,  # [..., 4], (x1, y1, x2, y2) in px of the network's input
    ) -> Tensor:  # [..., 4]
        """In px of the original image; a flip swaps the corners, which are put in order."""
        corners = boxes.unflatten(-1, (2, 2))
        corners = self.to_image(corners / corners.new_tensor(self.size))
        return torch.cat([corners.amin(-2), corners.amax(-2)], -1)

    def boxes_of_input(
        self,
        boxes: Tensor,  # [..., 4], (x1, y1, x2, y2) in px of the original image
    ) -> Tensor:  # [..., 4]
        """The inverse of ``boxes_to_image``."""
        corners = self.unflip(boxes.unflatten(-1, (2, 2)))
        corners = corners / corners.new_tensor(self.image_size) * corners.new_tensor(self.size)
        return torch.cat([corners.amin(-2), corners.amax(-2)], -1)

    def cells(self, size: tuple[int, int]) -> tuple[float, float]:
        """(rows, columns) of a feature map of (H, W) cells that are image, the rest being padding."""
        (w, h), (W, H) = self.size, self.padded_size
        return h / H * size[0], w / W * size[1]

    def unflip(
        self,
        points: Tensor,  # [..., 2], (x, y) in px of the original image's size
    ) -> Tensor:  # [..., 2]
        """Mirror the points back. The flip is an involution, so this also flips them."""
        if self.flip is None:
            return points
        w, h = self.image_size
        mirrored = points.new_tensor([w, h]) - points
        flipped = points.new_tensor([self.flip != 'vertical', self.flip != 'horizontal']).bool()
        return mirrored.where(flipped, points)
