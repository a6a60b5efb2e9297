"""Mixed query selection, look-forward-twice and denoising against mmdet's DINO, which has all three.

DINO differs from Deformable DETR in more than these. What is of no concern here is made equal in mmdet's model: the
positions of the queries (DINO computes them from the references anew in each layer), its norm behind the decoder, the
bound of its inverse sigmoid, and the random numbers of the noise, which test_denoising.py compares.
"""

import copy
import os.path as osp

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from parity import assert_same_gradients, assert_same_losses, assert_same_raw_outputs, gradients_of
from torch import nn

from mmdet_ddetr.layers import inverse_sigmoid
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_dropout

C, NUM_CLASSES = 32, 3
SHAPES = [(64, 80), (57, 64)]
CELLS = 8 * 10 + 4 * 5 + 2 * 3 + 1 * 2


class Given(nn.Module):
    """Gives what it was told to, whatever it gets."""

    def forward(self, _):
        return self.value


def dino_config(num_queries):
    path = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/dino/dino-4scale_r50_8xb2-12e_coco.py')
    cfg = shrink(Config.fromfile(path).model)
    for stack in (cfg.encoder, cfg.decoder):
        for name, part in stack.layer_cfg.items():
            if name.endswith('_cfg'):
                part.embed_dims = C
                if name.endswith('attn_cfg'):
                    part.batch_first = True  # mmdet's layers insist on it
        stack.layer_cfg.ffn_cfg.feedforward_channels = 64
    cfg.backbone.base_channels = 8
    cfg.neck.update(in_channels=[16, 32, 64], out_channels=C)
    cfg.positional_encoding.num_feats = C // 2
    cfg.bbox_head.update(num_classes=NUM_CLASSES, embed_dims=C)
    cfg.dn_cfg.group_cfg.num_dn_queries = 9
    cfg.num_queries = num_queries
    return cfg


@pytest.fixture(params=[20, CELLS], ids=['20 queries', 'a query per cell'])
def pair(request, monkeypatch):
    """(mmdet's DINO, our Deformable DETR with the three switches on) with equal weights."""
    init_default_scope('mmdet')
    cfg = dino_config(request.param)
    ours_cfg = copy.deepcopy(cfg)
    ours_cfg.type, ours_cfg.bbox_head.type = 'mmdet_ddetr.DeformableDETR', 'mmdet_ddetr.SetHead'
    ours_cfg.update(mixed_selection=True, proposals_on_padding=True)
    ours_cfg.decoder.look_forward_twice = True
    theirs, ours = MODELS.build(cfg), MODELS.build(ours_cfg)
    theirs.init_weights()
    randomise(theirs)
    last = theirs.bbox_head.cls_branches[-1]  # DINO selects by the best class, Deformable DETR by class 0: make it that
    last.weight.data[1:], last.bias.data[1:] = last.weight.data[0], last.bias.data[0] - 2
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert {key.split('.')[0] for key in missing} == {'pos_trans_fc', 'pos_trans_norm'}
    assert {'.'.join(key.split('.')[:2]) for key in unexpected} == {'decoder.ref_point_head', 'decoder.norm'}

    theirs.decoder.norm = nn.Identity()
    theirs.decoder.ref_point_head = Given()
    monkeypatch.setattr(
        'mmdet.models.layers.transformer.dino_layers.inverse_sigmoid', lambda x, eps: inverse_sigmoid(x)
    )
    noise = {}
    generator = ours.dn_query_generator
    for name in ('noisy_labels', 'noisy_boxes'):
        method = getattr(generator, name)
        monkeypatch.setattr(generator, name, lambda x, n=name, m=method: noise.setdefault(n, m(x)))
    embedding = theirs.dn_query_generator.label_embedding
    monkeypatch.setattr(
        theirs.dn_query_generator,
        'generate_dn_label_query',
        lambda labels, groups: embedding(noise['noisy_labels'].flatten()),
    )
    monkeypatch.setattr(
        theirs.dn_query_generator,
        'generate_dn_bbox_query',
        lambda boxes, groups: inverse_sigmoid(noise['noisy_boxes'].view(-1, 4)),
    )
    ours.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: hand_over(kwargs['query_pos'], theirs, request.param), with_kwargs=True
    )
    return without_dropout(theirs), without_dropout(ours)


def hand_over(query_pos, theirs, matching):
    """mmdet's denoising queries come first."""
    theirs.decoder.ref_point_head.value = torch.cat([query_pos[:, matching:], query_pos[:, :matching]], 1).detach()


@pytest.mark.parametrize('labels', ['class 0', 'all classes'])
@pytest.mark.parametrize('counts', [[3, 2], [4, 0], [0, 0]])
def test_losses_and_gradients(pair, counts, labels):
    theirs, ours = pair
    inputs, samples = make_batch(SHAPES, counts, NUM_CLASSES)
    if labels == 'class 0':
        for sample in samples:
            sample.gt_instances.labels[:] = 0
    got = ours.train().loss(inputs, copy.deepcopy(samples))
    expected = theirs.train().loss(inputs, copy.deepcopy(samples))
    assert set(got) == set(expected)
    # DINO's encoder learns the classes of the proposals selected, Deformable DETR's objects from all proposals
    same_encoder = labels == 'class 0' and ours.num_queries == CELLS
    names = [name for name in expected if same_encoder or not name.startswith('enc_')]
    assert_same_losses(got, expected, names)
    for losses in (got, expected):
        sum(losses[name] for name in names).backward()
    theirs, ours = map(gradients_of, pair)
    assert_same_gradients(ours, theirs, set(theirs) & set(ours))


def test_detections(pair):
    theirs, ours = pair
    inputs, samples = make_batch(SHAPES, [1, 1], NUM_CLASSES)
    assert_same_raw_outputs(ours, theirs, (inputs, samples))
