"""Attention within each level against a loop over queries, heads and points."""

import copy

import pytest
import torch

from mmdet_ddetr.layers import DeformableEncoder, MSDeformAttn, OwnLevelDeformAttn
from mmdet_ddetr.testing import randomise

SHAPES = [(4, 5), (2, 3)]
S, C, M, K = 26, 16, 2, 3


def make_attention(**kwargs):
    return randomise(OwnLevelDeformAttn(C, num_heads=M, num_points=K, **kwargs), std=0.5).eval()


def make_inputs():
    return dict(
        query=torch.randn(2, S, C),
        query_pos=torch.randn(2, S, C),
        reference_points=torch.rand(2, S, 2, 2),
        key_padding_mask=torch.rand(2, S) > 0.7,
        spatial_shapes=SHAPES,
    )


def bilinear(cells, shape, x, y):
    """cells [H*W, D] at a point in cells, whose centres lie at halves."""
    (H, W), total = shape, 0
    for row in range(H):
        for column in range(W):
            share = max(0, 1 - abs(x - column - 0.5)) * max(0, 1 - abs(y - row - 0.5))
            total = total + share * cells[row * W + column]
    return total


def by_loops(attention, query, query_pos, reference_points, key_padding_mask, spatial_shapes):
    value = attention.value_proj(query).masked_fill(key_padding_mask[..., None], 0)
    content = query + query_pos
    offsets = attention.sampling_offsets(content).view(2, S, M, K, 2)
    weights = attention.attention_weights(content).view(2, S, M, K).softmax(-1)
    output = torch.zeros(2, S, C)
    start = 0
    for level, (H, W) in enumerate(spatial_shapes):
        for b in range(2):
            for q in range(start, start + H * W):
                for m in range(M):
                    channels = slice(m * C // M, (m + 1) * C // M)
                    cells = value[b, start : start + H * W, channels]
                    for k in range(K):
                        x = reference_points[b, q, level, 0] * W + offsets[b, q, m, k, 0]
                        y = reference_points[b, q, level, 1] * H + offsets[b, q, m, k, 1]
                        output[b, q, channels] += weights[b, q, m, k] * bilinear(cells, (H, W), x.item(), y.item())
        start += H * W
    return attention.output_proj(output) + query


@torch.no_grad()
def test_against_loops():
    attention, inputs = make_attention(batch_first=True), make_inputs()
    torch.testing.assert_close(attention(**inputs), by_loops(attention, **inputs), rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_queries_first():
    attention, inputs = make_attention(batch_first=True), make_inputs()
    expected = attention(**inputs)
    attention.batch_first = False
    for name in ('query', 'query_pos'):
        inputs[name] = inputs[name].transpose(0, 1)
    torch.testing.assert_close(attention(**inputs).transpose(0, 1), expected)


def test_levels_do_not_meet():
    """A level's output depends on that level alone; in multi-scale attention, on all."""
    layer = dict(
        self_attn_cfg=dict(
            embed_dims=C, num_heads=M, num_points=K, batch_first=True, type='mmdet_ddetr.OwnLevelDeformAttn'
        ),
        ffn_cfg=dict(embed_dims=C, feedforward_channels=8),
    )
    multi_scale = copy.deepcopy(layer)
    multi_scale['self_attn_cfg'].update(type=MSDeformAttn, num_levels=2)
    for cfg, meet in ((layer, False), (multi_scale, True)):
        encoder = randomise(DeformableEncoder(2, cfg), std=0.2).eval()
        feat = torch.randn(1, S, C, requires_grad=True)
        output = encoder(feat, torch.zeros(1, S, C), None, spatial_shapes=SHAPES, valid_ratios=torch.ones(1, 2, 2))
        (grad,) = torch.autograd.grad(output[:, :20].square().sum(), feat)
        assert grad[:, :20].any()
        assert grad[:, 20:].any() == meet


def test_bad_input_is_named():
    attention, inputs = make_attention(batch_first=True), make_inputs()
    with pytest.raises(ValueError, match=r'query must hold .*, 20 for \[\(4, 5\)\], got 26'):
        attention(**{**inputs, 'spatial_shapes': [(4, 5)]})
    with pytest.raises(ValueError, match='needs reference_points and spatial_shapes'):
        attention(**{**inputs, 'reference_points': None})
