"""Our Deformable DETR against mmdet's own, from mmdet's configs, in one process."""

import copy
import os.path as osp

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from parity import (
    BATCHES,
    NUM_CLASSES,
    QUICK_BATCHES,
    TOLERANCE,
    assert_same_detections,
    assert_same_gradients,
    assert_same_losses,
    assert_same_raw_outputs,
    losses_and_gradients,
    without_gradient,
)

from mmdet_ddetr.testing import make_batch, randomise, shrink, without_dropout

VARIANTS = {
    'base': 'deformable-detr_r50_16xb2-50e_coco.py',
    'refine': 'deformable-detr-refine_r50_16xb2-50e_coco.py',
    'two-stage': 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
}


@pytest.fixture(scope='module', params=VARIANTS)
def pair(request):
    """(mmdet's model, ours), built from mmdet's config with two type names changed, equal weights.

    In padded batches mmdet's two-stage variant starts queries on the padding, which ours does only if told to.
    """
    init_default_scope('mmdet')
    torch.manual_seed(0)
    path = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/deformable_detr', VARIANTS[request.param])
    theirs_cfg = shrink(Config.fromfile(path).model)
    theirs_cfg.bbox_head.num_classes = NUM_CLASSES
    theirs_cfg.bbox_head.embed_dims = 256
    ours_cfg = copy.deepcopy(theirs_cfg)
    ours_cfg.type = 'mmdet_ddetr.DeformableDETR'
    ours_cfg.bbox_head.type = 'mmdet_ddetr.SetHead'
    ours_cfg.proposals_on_padding = True
    before = copy.deepcopy(ours_cfg)

    theirs = MODELS.build(theirs_cfg)
    theirs.init_weights()
    randomise(theirs)
    randomise(theirs.bbox_head.cls_branches, std=0.1, seed=1)  # scores far enough apart to compare their order
    MODELS.build(ours_cfg)
    ours = MODELS.build(ours_cfg)  # a second time from the same config
    assert ours_cfg == before, 'building a model changed its config'
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return without_dropout(theirs), without_dropout(ours)


@pytest.fixture(params=QUICK_BATCHES)
def batch(request):
    return make_batch(*BATCHES[request.param], NUM_CLASSES)


def test_losses_and_gradients(pair, batch):
    (theirs, their_gradients), (ours, our_gradients) = (losses_and_gradients(model, batch) for model in pair)
    assert list(ours) == list(theirs)
    assert_same_losses(ours, theirs)
    assert_same_gradients(our_gradients, their_gradients)


def test_raw_outputs(pair, batch):
    theirs, ours = pair
    assert_same_raw_outputs(ours, theirs, batch)


def test_detections(pair, batch):
    theirs, ours = pair
    assert_same_detections(ours, theirs, batch, count=100, more_than=20)


def test_an_image_of_a_padded_batch_gets_what_mmdet_gives_it_alone(pair):
    """By default, from the same features: where mmdet's depend on the other images, ours do not."""
    theirs, ours = pair
    shapes = [(64, 128), (64, 64)]
    _, samples = make_batch(shapes, [0, 0], NUM_CLASSES)
    _, alone = make_batch(shapes[1:], [0], NUM_CLASSES)
    feats = [torch.randn(2, 256, 64 // stride, 128 // stride) for stride in (8, 16, 32, 64)]
    own = [feat[1:, :, :, : feat.shape[3] // 2].contiguous() for feat in feats]

    def outputs(model, feats, samples):
        with torch.no_grad():
            return model.eval().bbox_head(**model.forward_transformer(tuple(feats), samples))

    ours.proposals_on_padding = False
    try:
        for a, b in zip(outputs(ours, feats, samples), outputs(theirs, own, alone), strict=True):
            torch.testing.assert_close(a[:, 1:], b, **TOLERANCE)
    finally:
        ours.proposals_on_padding = True


def test_a_changed_weight_is_seen(pair):
    """The comparison above can fail: every parameter that gets a gradient moves an output."""
    _, ours = pair
    # mmdet's config adds a bias to the keys' projection, which softmax cancels only up to rounding: nothing is dead
    assert without_gradient(ours, make_batch(*BATCHES['padded, one image empty'], NUM_CLASSES)) == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_full_size_state_dict(variant):
    """mmdet's own config, nothing made smaller: same keys, same shapes, same parameter count."""
    init_default_scope('mmdet')
    path = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/deformable_detr', VARIANTS[variant])
    cfg = Config.fromfile(path).model
    ours_cfg = copy.deepcopy(cfg)
    ours_cfg.type, ours_cfg.bbox_head.type = 'mmdet_ddetr.DeformableDETR', 'mmdet_ddetr.SetHead'
    theirs, ours = MODELS.build(cfg), MODELS.build(ours_cfg)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())
    assert round(count / 1e6, 1) == {'base': 40.1, 'refine': 40.9, 'two-stage': 41.2}[variant]


def test_fewer_candidates_than_max_per_img():
    """mmdet's top-k fails here."""
    init_default_scope('mmdet')
    path = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/deformable_detr', VARIANTS['two-stage'])
    cfg = shrink(Config.fromfile(path).model)
    cfg.type, cfg.bbox_head.type = 'mmdet_ddetr.DeformableDETR', 'mmdet_ddetr.SetHead'
    cfg.bbox_head.num_classes = 2
    model = MODELS.build(cfg).eval()
    inputs, samples = make_batch([(64, 64)], [1], 2)
    (result,) = model(inputs, copy.deepcopy(samples), mode='predict')
    assert len(result.pred_instances) == 40  # 20 queries x 2 classes, max_per_img 100
    # more queries than the encoder has cells: 8*8 + 4*4 + 2*2 + 1
    cfg.num_queries = 300
    model = MODELS.build(cfg).eval()
    (result,) = model(inputs, copy.deepcopy(samples), mode='predict')
    assert len(result.pred_instances) == 100
