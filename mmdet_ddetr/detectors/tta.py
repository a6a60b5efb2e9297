"""Test-time augmentation: one set of detections from the sets that several views of an image give."""

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip, bbox_overlaps
from mmengine.model import BaseTTAModel
from mmengine.structures import InstanceData
from torch import Tensor

from mmdet_ddetr.registry import MODELS


@MODELS.register_module()
class DDetrTTAModel(BaseTTAModel):
    """Averages the sets that a detector predicts for flipped and resized views of an image.

    A DETR gives each object one box, so that two boxes of one view are two objects, however much they overlap; NMS over
    all views would drop one of them. Here boxes are merged between views only:

    1. Boxes are mapped to the original image; with ``size_ranges``, each keeps those of the sizes it is trusted with.
    2. The highest score that is left takes from every *other* view the box of its class that overlaps it most, if by
       ``iou_threshold`` or more, and forms a group with them. Repeat.
    3. A group becomes one detection. Box: the mean, weighted by score. Score: the sum over the number of views, so that
       a view without the object counts as 0 (views whose ``size_ranges`` leave the merged box out do not count).

    With a single view the result is the detector's own. The rule of the paper's table 3 was not published; this one is
    weighted box fusion (Solovyev et al., 2021, arXiv:1910.13302), held to at most one box a view.

    Args:
        module: the detector, or its config.
        iou_threshold: least overlap, in [0, 1], of boxes that are taken for the same object.
        max_per_img: detections kept per image.
        size_ranges: (smallest, largest) square root of a box's area in pixels of the original image, for equally large
            groups of views in the order of the pipeline: one range for each scale where scales come first in
            ``TestTimeAug``. None: every size from every view.
    """

    def __init__(
        self,
        module: dict,
        iou_threshold: float = 0.65,
        max_per_img: int = 100,
        size_ranges: list[tuple[float, float]] | None = None,
        **kwargs,
    ):
        super().__init__(module, **kwargs)
        if not 0 < iou_threshold <= 1:
            raise ValueError(f'iou_threshold must be in (0, 1], got {iou_threshold}')
        self.iou_threshold = iou_threshold
        self.max_per_img = max_per_img
        self.size_ranges = size_ranges

    def merge_preds(self, data_samples_list: list[list[DetDataSample]]) -> list[DetDataSample]:
        """Merge the views of each image: the outer list are images, the inner ones their views."""
        return [self._merge_views(views) for views in data_samples_list]

    def _merge_views(self, views: list[DetDataSample]) -> DetDataSample:
        detections = [view.pred_instances for view in views]
        ranges = self._ranges(len(views), detections[0].bboxes)  # [V, 2]
        view_of = torch.cat([d.labels.new_full((len(d),), v) for v, d in enumerate(detections)])
        boxes = torch.cat([self._unflipped(view) for view in views])
        scores, labels = (torch.cat([d[key] for d in detections]) for key in ('scores', 'labels'))
        trusted = _is_within(boxes, ranges[view_of])
        merged = self._merge(boxes[trusted], scores[trusted], labels[trusted], view_of[trusted], ranges)
        views[0].pred_instances = InstanceData(**merged)
        return views[0]

    def _ranges(self, num_views: int, like: Tensor) -> Tensor:
        """[V, 2] sizes that each view is trusted with."""
        ranges = like.new_tensor(self.size_ranges or [(0.0, float('inf'))])
        if num_views % len(ranges):
            raise ValueError(f'size_ranges must divide the {num_views} views of an image, got {len(ranges)} ranges')
        return ranges.repeat_interleave(num_views // len(ranges), 0)

    @staticmethod
    def _unflipped(view: DetDataSample) -> Tensor:
        boxes = view.pred_instances.bboxes
        if view.get('flip', False):
            boxes = bbox_flip(boxes, view.ori_shape, view.flip_direction)
        return boxes

    def _merge(
        self,
        boxes: Tensor,  # [N, 4] in (x1, y1, x2, y2)
        scores: Tensor,  # [N]
        labels: Tensor,  # [N]
        view_of: Tensor,  # [N]
        ranges: Tensor,  # [V, 2]
    ) -> dict[str, Tensor]:
        """Steps 2 and 3."""
        order = scores.sort(descending=True, stable=True)[1]
        boxes, scores, labels, view_of = (x[order] for x in (boxes, scores, labels, view_of))
        group_of = self._groups(boxes, labels, view_of)
        total = torch.zeros_like(scores).index_add(0, group_of, scores)
        share = scores / total[group_of].clamp(min=torch.finfo(scores.dtype).tiny)
        boxes = torch.zeros_like(boxes).index_add(0, group_of, boxes * share[:, None])
        # the views that were asked for a box of this size; not 0, though a mean may be of nobody's size
        asked = _is_within(boxes[:, None], ranges).sum(1).clamp(min=1)
        scores = (total / asked).clamp(max=1)
        groups = group_of.unique()
        groups = groups[scores[groups].sort(descending=True, stable=True)[1][: self.max_per_img]]
        return dict(bboxes=boxes[groups], scores=scores[groups], labels=labels[groups])

    def _groups(self, boxes: Tensor, labels: Tensor, view_of: Tensor) -> Tensor:
        """[N] of each box, sorted by score, the index of the first box of its group."""
        may_join = (labels[:, None] == labels) & (view_of[:, None] != view_of)
        overlaps = (bbox_overlaps(boxes, boxes) * may_join).cpu().numpy()  # [N, N]
        views = view_of.cpu().numpy()
        group_of = np.full(len(views), -1)
        for first in range(len(views)):
            if group_of[first] >= 0:
                continue
            group_of[first] = first
            free = np.flatnonzero((group_of < 0) & (overlaps[first] >= self.iou_threshold))
            for view in np.unique(views[free]):
                of_view = free[views[free] == view]
                group_of[of_view[overlaps[first, of_view].argmax()]] = first
        return torch.from_numpy(group_of).to(boxes.device)


def _is_within(boxes: Tensor, ranges: Tensor) -> Tensor:
    """boxes [..., 4], ranges [..., 2] of the square root of their area."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
    return (size >= ranges[..., 0]) & (size <= ranges[..., 1])
