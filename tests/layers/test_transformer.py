import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention as MMCVMultiheadAttention

from mmdet_ddetr.detectors import DeformableDETR
from mmdet_ddetr.layers import DeformableDecoder, DeformableEncoder, MultiheadAttention, sine_embedding

C = 32
ATTN = dict(embed_dims=C, num_heads=4, num_levels=2, num_points=2, dropout=0.0, batch_first=True)
FFN = dict(embed_dims=C, feedforward_channels=64)
ENCODER_LAYER = dict(self_attn_cfg=ATTN, ffn_cfg=FFN)
DECODER_LAYER = dict(self_attn_cfg=dict(embed_dims=C, num_heads=4, batch_first=True), cross_attn_cfg=ATTN, ffn_cfg=FFN)
SHAPES = [(4, 6), (2, 3)]
S = 30


def test_encoder_reference_points_by_hand():
    """A 1 x 2 map and a 1 x 1 map; of the first, the left half is image."""
    ratios = torch.tensor([[[0.5, 1.0], [1.0, 1.0]]])
    points = DeformableEncoder.reference_points([(1, 2), (1, 1)], ratios)
    assert points.shape == (1, 3, 2, 2)
    # centre of cell 0 is half of the valid width; in the padded map of level 0 that is a quarter
    torch.testing.assert_close(points[0, 0], torch.tensor([[0.25, 0.5], [0.5, 0.5]]))
    # cell 1 is padding: beyond the image (1.5), three quarters of the padded map
    torch.testing.assert_close(points[0, 1], torch.tensor([[0.75, 0.5], [1.5, 0.5]]))
    torch.testing.assert_close(points[0, 2], torch.tensor([[0.25, 0.5], [0.5, 0.5]]))


def test_encoder_proposals_by_hand():
    """4 x 5 cells, of which 4 x 4 are image; a level above with squares of 0.1."""
    ratios = torch.tensor([[[0.8, 1.0], [1.0, 1.0]]])
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[:, :, 4] = True
    mask = torch.cat([mask.flatten(1), torch.zeros(1, 1, dtype=torch.bool)], 1)
    logits, usable = DeformableDETR.encoder_proposals([(4, 5), (1, 1)], ratios, mask)
    boxes = logits.sigmoid()
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.125, 0.125, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 8], torch.tensor([0.875, 0.375, 0.05, 0.05]))  # row 1, column 3
    torch.testing.assert_close(boxes[0, 20], torch.tensor([0.5, 0.5, 0.1, 0.1]))
    assert not usable[0, [4, 9, 14, 19]].any() and usable.sum() == 17
    assert torch.isinf(logits[0, 4]).all()
    # 0.05 * 2^5 = 1.6 of the image is no box: the sixth level has no usable cell
    _, usable = DeformableDETR.encoder_proposals([(1, 1)] * 6, torch.ones(1, 6, 2), None)
    assert usable.flatten().tolist() == [True] * 5 + [False]
    # a centre within 1 % of the border is not used
    _, usable = DeformableDETR.encoder_proposals([(1, 60)], torch.ones(1, 1, 2), None)
    assert usable.flatten().tolist() == [False] + [True] * 58 + [False]


def test_box_embedding_against_a_loop():
    boxes = torch.rand(2, 3, 4)
    embedding = sine_embedding(boxes, num_feats=6)
    assert embedding.shape == (2, 3, 24)
    for b, q, c, i in torch.cartesian_prod(*(torch.arange(n) for n in (2, 3, 4, 6))).tolist():
        phase = boxes[b, q, c].double() * 2 * torch.pi / 10000 ** (2 * (i // 2) / 6)
        expected = phase.sin() if i % 2 == 0 else phase.cos()
        assert embedding[b, q, 6 * c + i].item() == pytest.approx(expected.item(), abs=1e-5)


def run_decoder(decoder, dims, refine=None):
    torch.manual_seed(1)
    return decoder(
        torch.randn(2, 5, C),
        query_pos=torch.randn(2, 5, C),
        value=torch.randn(2, S, C),
        key_padding_mask=None,
        reference_points=torch.rand(2, 5, dims),
        spatial_shapes=SHAPES,
        valid_ratios=torch.tensor([[[1.0, 1.0]] * 2, [[0.7, 0.5]] * 2]),
        refine=refine,
    )


def test_decoder_refines_layer_by_layer():
    decoder = DeformableDecoder(3, DECODER_LAYER)
    calls = []

    def refine(layer, hidden, reference):
        calls.append(layer)
        assert reference.requires_grad is False
        return (torch.full_like(hidden[..., :4], 0.1 * (layer + 1)) + 0 * hidden[..., :4]).clamp(0, 1)

    hidden, reference = run_decoder(decoder, 4, refine)
    assert hidden.shape == (3, 2, 5, C) and reference.shape == (3, 2, 5, 4)
    assert calls == [0, 1], 'the last layer refines nothing that is used'
    torch.testing.assert_close(reference[1], torch.full((2, 5, 4), 0.1))
    torch.testing.assert_close(reference[2], torch.full((2, 5, 4), 0.2))
    assert not reference.requires_grad, 'no gradient from one layer into the next'
    # from a point: the first reference is given as a box whose size shifts nothing
    _, reference = run_decoder(decoder, 2, refine)
    assert reference.shape == (3, 2, 5, 4) and (reference[0, ..., 2:] == 0.5).all()
    # without refinement the reference stays
    _, reference = run_decoder(decoder, 2)
    assert reference.shape == (3, 2, 5, 2) and torch.equal(reference[0], reference[2])


def test_decoder_without_intermediate_and_with_post_norm():
    torch.manual_seed(0)
    full = DeformableDecoder(2, DECODER_LAYER, post_norm_cfg=dict(type='LN'))
    last = DeformableDecoder(2, DECODER_LAYER, post_norm_cfg=dict(type='LN'), return_intermediate=False)
    last.load_state_dict(full.state_dict())
    hidden, reference = run_decoder(last, 2)
    assert hidden.shape == (1, 2, 5, C) and reference.shape == (1, 2, 5, 2)
    torch.testing.assert_close(hidden[0], run_decoder(full, 2)[0][-1])
    torch.testing.assert_close(hidden.mean(-1), torch.zeros(1, 2, 5), atol=1e-6, rtol=0)


@pytest.mark.parametrize('num_cp', [0, 2])
def test_checkpointing_changes_no_gradient(num_cp):
    def gradients(num_cp):
        torch.manual_seed(0)
        encoder = DeformableEncoder(2, ENCODER_LAYER, num_cp=num_cp).train()
        query = torch.randn(1, S, C, requires_grad=True)
        encoder(
            query,
            query_pos=torch.randn(1, S, C),
            key_padding_mask=None,
            spatial_shapes=SHAPES,
            valid_ratios=torch.ones(1, 2, 2),
        ).square().sum().backward()
        return [query.grad, *(p.grad for p in encoder.parameters())]

    for a, b in zip(gradients(num_cp), gradients(-1), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match='num_cp must be at most num_layers=2, got 3'):
        DeformableEncoder(2, ENCODER_LAYER, num_cp=3)


@pytest.mark.parametrize('batch_first', [True, False])
def test_multihead_attention_agrees_with_mmcv(batch_first):
    torch.manual_seed(0)
    # mmcv's default dropout_layer is a dict that other modules have written into
    theirs = MMCVMultiheadAttention(C, 4, batch_first=batch_first, dropout_layer=None)
    ours = MultiheadAttention(C, 4, batch_first=batch_first)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, key, query_pos, key_pos = (torch.randn(2, n, C) for n in (5, 7, 5, 7))
    if not batch_first:
        query, key, query_pos, key_pos = (x.transpose(0, 1) for x in (query, key, query_pos, key_pos))
    mask = torch.rand(5, 7) > 0.7
    padding = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
    for kwargs in (
        dict(query=query, query_pos=query_pos, key_pos=query_pos),
        dict(query=query, query_pos=query_pos),
        dict(query=query, key=key, query_pos=query_pos, key_pos=key_pos, key_padding_mask=padding),
        dict(query=query, key=key, value=key * 2, identity=query * 0, attn_mask=mask),
    ):
        torch.testing.assert_close(ours(**kwargs), theirs(**kwargs))


def test_dropout_argument_does_not_leak():
    """mmcv writes ``dropout`` into a default that every later module shares."""
    assert MultiheadAttention(C, 4, dropout=0.3).dropout_layer.p == 0.3
    assert MultiheadAttention(C, 4, dropout=0.3).attn.dropout == 0.3
    assert isinstance(MultiheadAttention(C, 4).dropout_layer, torch.nn.Identity)
