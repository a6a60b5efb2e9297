"""Merging the detections of several views: by hand, with one view, and through mmdet's pipeline."""

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.detectors import DDetrTTAModel
from mmdet_ddetr.registry import MODELS
from mmdet_ddetr.testing import make_batch, shrink

SIZE = (60, 100)  # height, width


class NoDetector(nn.Module):
    def test_step(self, data):
        raise AssertionError('the views are given')


def view(rows, flip=False):
    """A data sample with detections (x1, y1, x2, y2, score, label)."""
    rows = torch.tensor(rows, dtype=torch.double).view(-1, 6)
    sample = DetDataSample(
        metainfo=dict(ori_shape=SIZE, flip=flip, flip_direction='horizontal' if flip else None, img_id=7)
    )
    sample.pred_instances = InstanceData(bboxes=rows[:, :4], scores=rows[:, 4], labels=rows[:, 5].long())
    return sample


def merge(*views, **kwargs):
    (sample,) = DDetrTTAModel(NoDetector(), **kwargs).merge_preds([list(views)])
    assert sample.img_id == 7
    found = sample.pred_instances
    return torch.cat([found.bboxes, found.scores[:, None], found.labels[:, None]], 1)


def assert_rows(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.double).view(-1, 6))


def test_merge_by_hand():
    """Two objects that overlap a lot, of which the second view finds both; and one that it does not find."""
    first = [[10, 10, 30, 30, 0.9, 0], [12, 10, 32, 30, 0.6, 0], [60, 20, 80, 40, 0.5, 1]]
    second = [[13, 10, 33, 30, 0.4, 0], [10, 10, 28, 30, 0.3, 0]]
    # 0.9 takes [10, 10, 28, 30]: IoU 18/20 and not 17/23; then 0.6 takes what is left, IoU 19/21.
    # Boxes: x2 = (30 * 0.9 + 28 * 0.3) / 1.2; x1 = (12 * 0.6 + 13 * 0.4) / 1.
    assert_rows(
        merge(view(first), view(second)),
        [[10, 10, 29.5, 30, 0.6, 0], [12.4, 10, 32.4, 30, 0.5, 0], [60, 20, 80, 40, 0.25, 1]],
    )


def test_groups_have_one_class_and_overlap():
    same_place = [10, 10, 30, 30]
    rows = merge(view([[*same_place, 0.8, 0]]), view([[*same_place, 0.6, 1]]))
    assert_rows(rows, [[*same_place, 0.4, 0], [*same_place, 0.3, 1]])
    shifted = [18, 10, 38, 30]  # IoU 12/28 = 0.43
    views = [[*same_place, 0.8, 0]], [[*shifted, 0.8, 0]]
    assert len(merge(*map(view, views), iou_threshold=0.44)) == 2
    assert_rows(merge(*map(view, views), iou_threshold=0.42), [[14, 10, 34, 30, 0.8, 0]])


def test_flipped_views_are_mirrored():
    rows = merge(view([[10, 5, 30, 25, 0.8, 0]]), view([[70, 5, 90, 25, 0.8, 0]], flip=True))
    assert_rows(rows, [[10, 5, 30, 25, 0.8, 0]])
    assert_rows(merge(view([[70, 5, 90, 25, 0.8, 0]], flip=True)), [[10, 5, 30, 25, 0.8, 0]])


def test_size_ranges():
    """Of two scales with two views each, the first is trusted with boxes from 20 px on, the second up to 30 px."""
    small, medium, large = [0, 0, 10, 10], [50, 0, 75, 25], [40, 10, 90, 60]
    every = [[*small, 0.4, 0], [*medium, 0.6, 0], [*large, 0.8, 0]]
    rows = merge(*[view(every) for _ in range(4)], size_ranges=[(20, float('inf')), (0, 30)])
    # all views agree, so that nobody's score falls, whoever was asked
    assert_rows(rows, [[*large, 0.8, 0], [*medium, 0.6, 0], [*small, 0.4, 0]])
    # one of the two views that are asked for a small box does not see it
    rows = merge(view(every), view(every), view(every), view(every[1:]), size_ranges=[(20, float('inf')), (0, 30)])
    assert_rows(rows, [[*large, 0.8, 0], [*medium, 0.6, 0], [*small, 0.2, 0]])
    with pytest.raises(ValueError, match='size_ranges must divide the 3 views of an image, got 2 ranges'):
        merge(*[view(every) for _ in range(3)], size_ranges=[(0, 1), (1, 2)])


def test_keeps_the_best():
    rows = [[10 * i, 0, 10 * i + 9, 9, 0.1 * i, 0] for i in range(1, 6)]
    assert merge(view(rows), view(rows), max_per_img=2)[:, 4].tolist() == pytest.approx([0.5, 0.4])


def test_nothing_found():
    assert merge(view([]), view([], flip=True)).shape == (0, 6)
    assert merge(view([]), view([[1, 2, 3, 4, 0.5, 0]])).shape == (1, 6)


def test_bad_threshold_is_named():
    with pytest.raises(ValueError, match=r'iou_threshold must be in \(0, 1\], got 0'):
        DDetrTTAModel(NoDetector(), iou_threshold=0)


# --- with a detector -------------------------------------------------------------------------------------------------


def test_one_view_is_plain_prediction():
    cfg = shrink(get_config('deformable-detr-refine-twostage_r50_16xb2-50e_coco').model)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(dict(type='mmdet_ddetr.DDetrTTAModel', module=cfg)).eval()
    inputs, samples = make_batch([(64, 96), (57, 64)], [0, 0], 80)
    images = [255 * image[:, : s.img_shape[0], : s.img_shape[1]].sigmoid() for image, s in zip(inputs, samples)]
    with torch.no_grad():
        plain = model.module.test_step(dict(inputs=images, data_samples=samples))
        merged = model.test_step(dict(inputs=[images], data_samples=[samples]))
    for a, b in zip(plain, merged, strict=True):
        assert len(a.pred_instances) == 100
        for key in ('bboxes', 'scores', 'labels'):
            torch.testing.assert_close(a.pred_instances[key], b.pred_instances[key], rtol=0, atol=0)


class Brightest(nn.Module):
    """Finds the bright rectangle of an image, as sure of it as it is bright."""

    def test_step(self, data):
        samples = data['data_samples']
        for image, sample in zip(data['inputs'], samples):
            ys, xs = torch.nonzero(image[0] > 100, as_tuple=True)
            box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            box = box / torch.tensor(sample.scale_factor).repeat(2)
            score = image.max().float() / 255
            sample.pred_instances = InstanceData(
                bboxes=box[None], scores=score[None], labels=torch.zeros(1, dtype=torch.long)
            )
        return samples


def test_through_the_pipeline():
    """A detector that errs by nothing but the pixels finds in eight views what it finds in one."""
    cfg = get_config('deformable-detr-refine-twostage_x101-64x4d-mdconv-c3-c5_16xb2-50e_coco')
    image = np.zeros((240, 400, 3), dtype=np.uint8)
    image[50:150, 40:120] = 204  # 0.8 of white
    results = dict(img=image, img_shape=(240, 400), ori_shape=(240, 400), img_id=0, img_path='', instances=[])
    with DefaultScope.overwrite_default_scope('mmdet'):
        augment = Compose(cfg.tta_pipeline[1:])
        model = MODELS.build(dict(cfg.tta_model, module=Brightest()))
    data = augment(results)
    heights = [sample.img_shape[0] for sample in data['data_samples']]
    assert heights == [640, 640, 800, 800, 1000, 1000, 1200, 1200]
    assert [sample.flip for sample in data['data_samples']] == [False, True] * 4
    (sample,) = model.test_step({key: [[item] for item in items] for key, items in data.items()})
    torch.testing.assert_close(
        sample.pred_instances.bboxes, torch.tensor([[40.0, 50, 120, 150]]), rtol=0, atol=0.5
    )  # half a pixel: that far the resized edge blurs
    torch.testing.assert_close(sample.pred_instances.scores, torch.tensor([0.8]))
    assert not sample.flip
