"""Our DAB-DETR against mmdet's, whose config becomes ours by two type names."""

import copy
import functools
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
    assert_same_detections,
    assert_same_gradients,
    assert_same_losses,
    assert_same_raw_outputs,
    losses_and_gradients,
)

from mmdet_ddetr.layers import FixedCentres, at_every_place
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_dropout

BRANCHES = ('cls_branches', 'reg_branches', 'fc_')  # of the head, which mmdet names otherwise
VARIANTS = {
    'boxes': {},
    'patterns': dict(num_patterns=3),
    'a number scales': dict(decoder=dict(query_scale_type='cond_scalar')),
    'a vector of the layer scales': dict(decoder=dict(query_scale_type='fix_elewise')),
    'points': dict(decoder=dict(query_dim=2, with_modulated_hw_attn=False)),
}


def config(**changes):
    """mmdet's, small."""
    init_default_scope('mmdet')
    path = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/dab_detr/dab-detr_r50_8xb2-50e_coco.py')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(dict(model=dict(changes, test_cfg=dict(max_per_img=100))))
    cfg = shrink(cfg.model)
    cfg.bbox_head.num_classes = NUM_CLASSES
    return cfg


def make_ours(cfg):
    cfg = copy.deepcopy(cfg)
    cfg.type, cfg.bbox_head.type = 'mmdet_ddetr.DABDETR', 'mmdet_ddetr.SetHead'
    return MODELS.build(cfg)


@functools.cache
def make_pair(variant):
    """(mmdet's, ours) with equal weights."""
    torch.manual_seed(1)  # with others, a rounding in some ReLU's argument may switch a gradient
    cfg = config(**VARIANTS[variant])
    theirs, ours = MODELS.build(cfg), make_ours(cfg)
    theirs.init_weights()
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return without_dropout(theirs), without_dropout(ours)


PADDED = next(iter(BATCHES))


@pytest.mark.parametrize(
    ('variant', 'name'), [('boxes', name) for name in BATCHES] + [(v, PADDED) for v in VARIANTS][1:]
)
def test_parity_with_mmdet(variant, name):
    theirs, ours = make_pair(variant)
    batch = make_batch(*BATCHES[name], NUM_CLASSES)
    assert_same_raw_outputs(ours, theirs, batch)
    if variant in ('boxes', 'patterns'):  # the others' random queries score almost alike
        assert_same_detections(ours, theirs, batch, count=100, more_than=5)
    our_losses, our_gradients = losses_and_gradients(ours, batch)
    their_losses, their_gradients = losses_and_gradients(theirs, batch)
    assert_same_losses(our_losses, their_losses)
    names = [key for key in their_gradients if not any(part in key for part in BRANCHES)]
    assert len(names) > 150
    assert_same_gradients(our_gradients, their_gradients, names)


def test_every_pattern_at_every_place():
    contents, places = at_every_place(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]))
    assert contents.flatten().tolist() == [1, 1, 1, 2, 2, 2]
    torch.testing.assert_close(places[:, 0], torch.tensor([0.1, 0.3, 0.5, 0.1, 0.3, 0.5]))


def test_fixed_centres_are_not_trained():
    """mmdet's change in every step (mmdetection #11692): its optimizer's weight decay alone would do that."""
    ours = make_ours(config(with_random_refpoints=True))
    before = ours.query_embedding.weight.detach().clone()
    assert (before[:, :2].sigmoid() > 0.0009).all() and (before[:, :2].sigmoid() < 0.9991).all()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.01, weight_decay=0.1)
    losses, _ = losses_and_gradients(ours, make_batch(*BATCHES['not padded'], NUM_CLASSES))
    optimizer.step()
    after = ours.query_embedding.weight.detach()
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).all()


def test_fixed_centres_are_one_tensor_in_a_checkpoint():
    fixed, free = FixedCentres(3, 4), torch.nn.Embedding(3, 4)
    assert list(fixed.state_dict()) == ['weight']
    free.load_state_dict(fixed.state_dict(), strict=True)
    other = FixedCentres(3, 4)
    other.load_state_dict(free.state_dict(), strict=True)
    assert torch.equal(other.weight, fixed.weight)
    with pytest.raises(RuntimeError, match='Unexpected key'):
        fixed.load_state_dict({'bias': torch.zeros(1), **free.state_dict()}, strict=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match='num_patterns must be a number of contents, or 0 for none, got -1'):
        make_ours(config(num_patterns=-1))
    with pytest.raises(ValueError, match='num_queries_one2many must be 0 with num_patterns=2'):
        make_ours(config(num_patterns=2, num_queries_one2many=5))
    with pytest.raises(ValueError, match=r'query_dim must be 4 \(boxes\) or 2 \(points\), got 3'):
        make_ours(config(decoder=dict(query_dim=3)))
    with pytest.raises(ValueError, match='with_modulated_hw_attn must be False with query_dim=2'):
        make_ours(config(decoder=dict(query_dim=2)))
    with pytest.raises(
        ValueError, match='query_scale_type must be one of cond_elewise, cond_scalar, fix_elewise, got '
    ):
        make_ours(config(decoder=dict(query_scale_type='none')))
