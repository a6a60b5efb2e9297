"""COCO's panoptic annotations as DETR sees them: things and stuff are both instances."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.structures.mask import BitmapMasks

from ..registry import TRANSFORMS
from .image_file import read_image

BGR_TO_ID = np.array([256**2, 256, 1])  # how the PNGs of COCO panoptic spell a segment's id


@TRANSFORMS.register_module()
class LoadPanopticInstances(BaseTransform):
    """Every segment of a ``CocoPanopticDataset`` becomes an instance: a thing, or all of one kind of stuff.

    In place of mmdet's ``LoadPanopticAnnotations``, which makes instances of things only. Boxes are those of the masks
    (official ``datasets/coco_panoptic.py``). Crowds, and segments without a pixel, are left out.

    Required keys: ``seg_map_path`` and ``segments_info`` (``id``, ``category``, ``is_thing``). Added: ``gt_bboxes``,
    ``gt_bboxes_labels``, ``gt_masks``, ``gt_ignore_flags``, and ``instances`` for metrics without annotation file.

    Args:
        num_things: classes below this number are things.
        backend_args: of mmengine's file backends.

    Raises:
        DataError: the PNG with the segments cannot be read or does not decode.
    """

    def __init__(self, num_things: int = 80, backend_args: dict | None = None):
        self.num_things = num_things
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        path = results['seg_map_path']
        where = f'{path} (image id {results.get("img_id")})'
        png = read_image(path, 'color_ignore_orientation', self.backend_args, where)
        ids = png.astype(np.int64) @ BGR_TO_ID  # [h, w]
        present = set(np.unique(ids))
        segments = [
            segment
            for segment in results['segments_info']
            # the dataset marks crowds by is_thing=False
            if segment['id'] in present and (segment['is_thing'] or segment['category'] >= self.num_things)
        ]
        masks = BitmapMasks([(ids == segment['id']).astype(np.uint8) for segment in segments], *ids.shape)
        boxes = masks.get_bboxes('hbox')
        labels = np.array([segment['category'] for segment in segments], np.int64)
        results.update(
            gt_masks=masks,
            gt_bboxes=boxes,
            gt_bboxes_labels=labels,
            gt_ignore_flags=np.zeros(len(segments), bool),
            instances=[
                dict(bbox=box, bbox_label=label, ignore_flag=0)
                for box, label in zip(boxes.tensor.tolist(), labels.tolist())
            ],
        )
        return results
