"""Our Deformable DETR against mmdet's own, from mmdet's configs, in one process."""

import copy
import os.path as osp

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_ddetr.testing import make_batch, randomise, shrink, without_dropout

VARIANTS = {
    'base': 'deformable-detr_r50_16xb2-50e_coco.py',
    'refine': 'deformable-detr-refine_r50_16xb2-50e_coco.py',
    'two-stage': 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
}
BATCHES = {
    'padded, one image empty': ([(128, 160), (96, 121)], [3, 0]),
    'not padded': ([(128, 160), (128, 160)], [2, 5]),
    'no box at all': ([(128, 160), (96, 128)], [0, 0]),
    'more boxes than queries': ([(128, 160), (90, 61)], [25, 3]),
}
NUM_CLASSES = 7
# fp32 sums over some 10^4 terms in another order: measured 5e-7 relative on losses, 2e-6 on logits and boxes.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module', params=VARIANTS)
def pair(request):
    """(mmdet's model, ours), built from mmdet's config with two type names changed, equal weights."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    path = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/deformable_detr', VARIANTS[request.param])
    theirs_cfg = shrink(Config.fromfile(path).model)
    theirs_cfg.bbox_head.num_classes = NUM_CLASSES
    theirs_cfg.bbox_head.embed_dims = 256
    ours_cfg = copy.deepcopy(theirs_cfg)
    ours_cfg.type = 'mmdet_ddetr.DeformableDETR'
    ours_cfg.bbox_head.type = 'mmdet_ddetr.SetHead'
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


@pytest.fixture(params=BATCHES)
def batch(request):
    return make_batch(*BATCHES[request.param], NUM_CLASSES)


def test_losses_and_gradients(pair, batch):
    inputs, samples = batch
    losses = []
    for model in pair:
        model.train()
        model.zero_grad()
        losses.append(model.loss(inputs, copy.deepcopy(samples)))
        sum(losses[-1].values()).backward()
    theirs, ours = losses
    assert list(ours) == list(theirs)
    for name in theirs:  # mmdet's are of shape [1] in part
        torch.testing.assert_close(ours[name], theirs[name].squeeze(), **TOLERANCE, msg=lambda m, n=name: f'{n}: {m}')
    theirs, ours = ({n: p.grad for n, p in model.named_parameters()} for model in pair)
    largest = max(grad.norm() for grad in theirs.values() if grad is not None)
    for name, grad in theirs.items():
        assert (grad is None) == (ours[name] is None), name
        if grad is not None:
            # one rounding in a ReLU's argument can switch one cell's gradient: compare norms, not cells
            assert (ours[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6 * largest, name


def test_raw_outputs(pair, batch):
    inputs, samples = batch
    with torch.no_grad():
        theirs, ours = (model.eval()(inputs, samples, mode='tensor') for model in pair)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def test_detections(pair, batch):
    inputs, samples = batch
    with torch.no_grad():
        theirs, ours = (model.eval()(inputs, copy.deepcopy(samples), mode='predict') for model in pair)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a.pred_instances) == 100
        # equal scores may swap places: compare what belongs to each score
        torch.testing.assert_close(a.pred_instances.scores, b.pred_instances.scores, **TOLERANCE)
        apart = b.pred_instances.scores.diff().abs() > 1e-5
        sure = torch.cat([apart, apart.new_ones(1)]) & torch.cat([apart.new_ones(1), apart])
        assert sure.sum() > 20
        assert torch.equal(a.pred_instances.labels[sure], b.pred_instances.labels[sure])
        torch.testing.assert_close(a.pred_instances.bboxes[sure], b.pred_instances.bboxes[sure], rtol=1e-5, atol=1e-3)


def test_a_changed_weight_is_seen(pair):
    """The comparison above can fail: every parameter that gets a gradient moves an output."""
    inputs, samples = make_batch(*BATCHES['padded, one image empty'], NUM_CLASSES)
    _, ours = pair
    ours.train().zero_grad()
    sum(ours.loss(inputs, copy.deepcopy(samples)).values()).backward()
    dead = [n for n, p in ours.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # mmdet's config adds a bias to the keys' projection, which softmax cancels only up to rounding: nothing is dead
    assert dead == []


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
