"""Panoptic segmentation: what is loaded, how masks become one map, and a detector that does so."""

import io
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.registry import init_default_scope

from mmdet_ddetr import get_config
from mmdet_ddetr.datasets import DataError, LoadPanopticInstances
from mmdet_ddetr.heads import PanopticFusion
from mmdet_ddetr.registry import MODELS
from mmdet_ddetr.testing import make_batch, randomise, shrink

THINGS, STUFF = 3, 2  # classes 0, 1, 2 and 3, 4
VOID = THINGS + STUFF


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def annotation(tmp_path):
    """A map of 6 x 8: a thing, stuff in two places, a crowd; the last segment has no pixel."""
    ids = np.zeros((6, 8), np.int64)
    ids[1:4, 2:5] = 70_000  # needs all three bytes
    ids[5, :2] = ids[5, 6:] = 300
    ids[0, 7] = 9
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    path = tmp_path / 'segments.png'
    cv2.imwrite(str(path), rgb[..., ::-1])
    return dict(
        img_id=1,
        seg_map_path=str(path),
        segments_info=[
            dict(id=300, category=85, is_thing=False),
            dict(id=70_000, category=17, is_thing=True),
            dict(id=9, category=0, is_thing=False),  # a crowd
            dict(id=12, category=90, is_thing=False),
        ],
    )


def test_segments_become_instances(annotation):
    results = LoadPanopticInstances(num_things=80).transform(annotation)
    assert results['gt_bboxes_labels'].tolist() == [85, 17]
    assert results['gt_bboxes'].tensor.tolist() == [[0, 5, 8, 6], [2, 1, 5, 4]]
    masks = results['gt_masks'].masks
    assert masks.shape == (2, 6, 8) and masks.sum((1, 2)).tolist() == [4, 9]
    assert masks[1, 1:4, 2:5].all()
    assert results['gt_ignore_flags'].tolist() == [False, False]
    assert results['instances'][1] == dict(bbox=[2, 1, 5, 4], bbox_label=17, ignore_flag=0)


def test_an_image_without_segments(annotation):
    annotation['segments_info'] = []
    results = LoadPanopticInstances().transform(annotation)
    assert results['gt_bboxes'].tensor.shape == (0, 4) and results['gt_masks'].masks.shape == (0, 6, 8)


def test_segments_that_do_not_decode(annotation, tmp_path):
    (tmp_path / 'segments.png').write_bytes(b'no image')
    with pytest.raises(DataError, match=r'segments\.png \(image id 1\): not an image'):
        LoadPanopticInstances().transform(annotation)


# --- fusion -----------------------------------------------------------------------------------------------------------


def fuse(logits, scores, labels, query=None, size=None, **kwargs):
    query = torch.arange(len(labels)) if query is None else torch.tensor(query)
    fusion = PanopticFusion(THINGS, STUFF, **kwargs)
    return fusion(logits, torch.tensor(scores), torch.tensor(labels), query, size or logits.shape[1:])[0]


def stripes(*rows):
    """Logits [N, 6, 6]: mask n is 5 in the rows of ``rows[n]``, -5 elsewhere."""
    logits = torch.full((len(rows), 6, 6), -5.0)
    for mask, of_mask in zip(logits, rows):
        mask[list(of_mask)] = 5.0
    return logits


def test_each_pixel_has_one_segment():
    """Two things of a class, and stuff that is less sure where they overlap."""
    logits = stripes([0, 1], [4, 5], range(6))
    logits[2] /= 2
    expected = torch.tensor([[2 + INSTANCE_OFFSET]] * 2 + [[3]] * 2 + [[2 + 2 * INSTANCE_OFFSET]] * 2).expand(6, 6)
    segments = fuse(logits, [0.9, 0.99, 0.95], [2, 2, 3])
    assert segments.dtype == torch.int32
    assert torch.equal(segments.long(), expected)


def test_unsure_detections_are_ignored():
    assert (fuse(stripes([0, 1, 2], range(6)), [0.85, 0.851], [1, 4]) == 4).all()
    assert (fuse(stripes([0, 1, 2]), [0.5], [1]) == VOID).all()
    assert (fuse(torch.zeros(0, 6, 6), [], torch.zeros(0, dtype=torch.long).tolist()) == VOID).all()


def test_one_segment_for_each_kind_of_stuff():
    """The mask of the first query, not of the surest, is the segment; what is left goes to whoever is surest then."""
    logits = stripes([0, 1], [4, 5], [2, 3])
    logits[2, :2] = -4.0
    segments = fuse(logits, [0.99, 0.9, 0.9], [3, 3, 0], query=[8, 5, 6])
    assert (segments[4:] == 3).all() and (segments[:4] == 2 * INSTANCE_OFFSET).all()


def test_hardly_any_pixels():
    logits = stripes([0], range(1, 6))
    logits[0, 0, 4:] = -6.0  # 4 pixels are left
    assert (fuse(logits, [0.9, 0.9], [1, 4]) == 4).all()
    assert (fuse(logits, [0.9, 0.9], [1, 4], min_area=4)[0, :4] == 1 + INSTANCE_OFFSET).all()
    # the size that counts is that of the original image
    assert (fuse(logits, [0.9, 0.9], [1, 4], size=(12, 12))[:2, :8] == 1 + INSTANCE_OFFSET).all()


def test_fusion_equals_hugging_faces():
    """The official post-processing as transformers 4 has it, on blobs that overlap."""
    detr = pytest.importorskip('transformers.models.detr.image_processing_detr')
    if not hasattr(detr.DetrImageProcessor, 'post_process_panoptic'):
        pytest.skip('transformers 5 has another one')
    from PIL import Image

    seen = set()
    for seed in range(12):
        rng = torch.Generator().manual_seed(seed)
        Q, processed, target = 12, (40, 52), (56, 36)  # sizes without ties between nearest pixels
        labels = torch.randint(0, VOID + 1, (Q,), generator=rng)  # the last one is "no object"
        class_logits = 6 * F.one_hot(labels, VOID + 1) + torch.rand(Q, VOID + 1, generator=rng)
        masks = F.interpolate(4 * torch.randn(1, Q, 4, 5, generator=rng), (20, 26), mode='bicubic')
        masks[0, : seed % 4] -= 12  # nowhere the surest
        outputs = SimpleNamespace(logits=class_logits[None], pred_masks=masks, pred_boxes=torch.rand(1, Q, 4))
        is_thing = {c: c < THINGS for c in range(VOID + 1)}
        (theirs,) = detr.DetrImageProcessor().post_process_panoptic(outputs, [processed], [target], is_thing)
        rgb = np.array(Image.open(io.BytesIO(theirs['png_string']))).astype(np.int64)
        ids = torch.from_numpy(rgb @ [1, 256, 65536])
        category = torch.tensor([segment['category_id'] for segment in theirs['segments_info']])

        scores, best = class_logits.softmax(-1)[:, :-1].max(-1)
        logits = F.interpolate(masks, processed, mode='bilinear')[0]
        order = scores.argsort(descending=True)  # detections come sorted by score
        ours = PanopticFusion(THINGS, STUFF)(logits[order], scores[order], best[order], order, target)[0].long()
        assert torch.equal(ours % INSTANCE_OFFSET, category[ids])
        pairs = torch.stack([ids, ours], -1).flatten(0, 1).unique(dim=0)
        assert len(pairs) == len(category), 'the segments are the same, whatever their numbers'
        seen |= set(category.tolist())
    assert seen == set(range(VOID))


# --- in a detector ----------------------------------------------------------------------------------------------------


def test_predictions():
    init_default_scope('mmdet')
    cfg = shrink(get_config('detr-masks_r50_8xb2-25e_coco-panoptic').model)
    cfg.panoptic_fusion_head.score_thr = 0.0
    torch.manual_seed(0)
    model = randomise(MODELS.build(cfg)).eval()
    inputs, samples = make_batch([(64, 96), (57, 64)], [1, 1], 133)
    with torch.no_grad():
        results = model(inputs, samples, mode='predict')
        alone = model(inputs[1:, :, :57, :64], [unpadded(samples[1])], mode='predict')
    for result in results:
        segments = result.pred_panoptic_seg.sem_seg
        assert segments.shape == (1, *result.ori_shape)
        found, labels = result.pred_instances, (segments % INSTANCE_OFFSET).unique()
        assert set(labels.tolist()) <= set(found.labels.tolist())
        assert found.masks.shape[1:] == segments.shape[1:]
    # padding of the batch changes only what rounding changes
    same = results[1].pred_panoptic_seg.sem_seg % 1000 == alone[0].pred_panoptic_seg.sem_seg % 1000
    assert same.float().mean() > 0.5


def unpadded(sample):
    sample = sample.new(metainfo=sample.metainfo)
    sample.set_metainfo(dict(batch_input_shape=sample.img_shape))
    return sample
