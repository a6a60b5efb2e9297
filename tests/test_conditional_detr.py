"""Our Conditional DETR against mmdet's, whose config becomes ours by two type names, and against the official code.

The fixture is of Atten4Vis/ConditionalDETR, where the 128 channels of the references' embedding were replaced.
"""

import copy
import os.path as osp

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from official import assert_parity, fill, load, small
from parity import (
    BATCHES,
    NUM_CLASSES,
    assert_same_detections,
    assert_same_gradients,
    assert_same_losses,
    assert_same_raw_outputs,
    losses_and_gradients,
    without_gradient,
)

from mmdet_ddetr.layers import ConditionalAttention, ConditionalDecoder
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_dropout

BRANCHES = ('cls_branches', 'reg_branches', 'fc_', 'reg_ffn')  # of the head, which mmdet names otherwise


@pytest.fixture(scope='module')
def pair():
    """(mmdet's, ours) with equal weights."""
    init_default_scope('mmdet')
    torch.manual_seed(0)  # whatever tests ran before: equal scores cannot be compared
    path = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/conditional_detr/conditional-detr_r50_8xb2-50e_coco.py')
    cfg = shrink(Config.fromfile(path).model)
    cfg.bbox_head.num_classes = NUM_CLASSES
    ours_cfg = copy.deepcopy(cfg)
    ours_cfg.type, ours_cfg.bbox_head.type = 'mmdet_ddetr.ConditionalDETR', 'mmdet_ddetr.SetHead'
    theirs, ours = MODELS.build(cfg), MODELS.build(ours_cfg)
    theirs.init_weights()
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return without_dropout(theirs), without_dropout(ours)


@pytest.mark.parametrize('name', BATCHES)
def test_parity_with_mmdet(pair, name):
    theirs, ours = pair
    batch = make_batch(*BATCHES[name], NUM_CLASSES)
    assert_same_raw_outputs(ours, theirs, batch)
    assert_same_detections(ours, theirs, batch, count=100, more_than=5)
    our_losses, our_gradients = losses_and_gradients(ours, batch)
    their_losses, their_gradients = losses_and_gradients(theirs, batch)
    assert_same_losses(our_losses, their_losses)
    names = [key for key in their_gradients if not any(part in key for part in BRANCHES)]
    assert len(names) > 150
    assert_same_gradients(our_gradients, their_gradients, names)


def test_parity_with_the_official_code():
    """Measured: 1e-6 in logits, 6e-8 in boxes, 2e-5 of the norm in gradients."""
    fixture = load('conditional_detr.pt')
    model = small('conditional-detr_r50_8xb2-50e_coco', fixture, (2, 3), 32, 16)
    fill(model, fixture)
    assert_parity(model.train(), fixture, 'official')


def test_every_parameter_moves(pair):
    """But what cannot matter: the key's bias is the same for all keys of a query, and the first state is zero."""
    _, ours = pair
    first = 'decoder.layers.0.self_attn.'
    still = without_gradient(ours, make_batch(*BATCHES['not padded'], NUM_CLASSES))
    assert set(still) <= {first + f'{proj}.weight' for proj in ('qcontent_proj', 'kcontent_proj', 'v_proj')}


def test_only_the_first_layer_adds_the_learned_position(pair):
    _, ours = pair
    attentions = [layer.cross_attn for layer in ours.decoder.layers]
    assert [attention.qpos_proj is None for attention in attentions] == [False, True, True]


def test_cross_attention_against_a_loop():
    """Each head multiplies content with content and position with position."""
    torch.manual_seed(0)
    M, D = 2, 3
    attention = ConditionalAttention(M * D, M, cross_attn=True).double()
    query, sine, query_pos = (torch.randn(1, 4, M * D, dtype=torch.float64) for _ in range(3))
    key, key_pos = (torch.randn(1, 5, M * D, dtype=torch.float64) for _ in range(2))
    padding = torch.tensor([[False, False, True, False, False]])
    expected = torch.zeros(4, M * D, dtype=torch.float64)
    content_q = attention.qcontent_proj(query)[0] + attention.qpos_proj(query_pos)[0]
    content_k = attention.kcontent_proj(key)[0] + attention.kpos_proj(key_pos)[0]
    position_q, position_k = attention.qpos_sine_proj(sine)[0], attention.kpos_proj(key_pos)[0]
    values = attention.v_proj(key)[0]
    for m in range(M):
        of_head = slice(m * D, (m + 1) * D)
        for q in range(4):
            logits = []
            for k in range(5):
                content = content_q[q, of_head] @ content_k[k, of_head]
                position = position_q[q, of_head] @ position_k[k, of_head]
                logits.append((content + position) / (2 * D) ** 0.5 if not padding[0, k] else content - float('inf'))
            weights = torch.stack(logits).softmax(0)
            expected[q, of_head] = sum(w * v for w, v in zip(weights, values[:, of_head]))
    result = attention(
        query, key=key, query_pos=query_pos, key_pos=key_pos, key_padding_mask=padding, ref_sine_embed=sine
    )
    torch.testing.assert_close(result, query + attention.out_proj(expected))


def test_other_depths_heads_and_widths():
    attn = dict(embed_dims=12, num_heads=3)
    layer = dict(self_attn_cfg=attn, cross_attn_cfg=attn, ffn_cfg=dict(embed_dims=12, feedforward_channels=8))
    decoder = ConditionalDecoder(num_layers=1, layer_cfg=layer)
    query, memory = torch.zeros(2, 4, 12), torch.randn(2, 6, 12)
    hidden, reference = decoder(
        query, query_pos=torch.randn(2, 4, 12), value=memory, key_pos=torch.randn(2, 6, 12), key_padding_mask=None
    )
    assert hidden.shape == (1, 2, 4, 12) and reference.shape == (1, 2, 4, 2)


def test_messages():
    with pytest.raises(ValueError, match='embed_dims must be divisible by num_heads, got embed_dims=10, num_heads=3'):
        ConditionalAttention(10, 3)
    with pytest.raises(ValueError, match='batch_first must be True'):
        ConditionalAttention(12, 3, batch_first=False)
