import copy
import itertools
import math

import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention

from mmdet_ddetr import MSDeformAttn, accelerate

SHAPES = [(6, 5), (3, 2)]
S = 36


def identity_projections(attn):
    """value_proj and output_proj = 1, so that the output is what was sampled."""
    with torch.no_grad():
        for projection in (attn.value_proj, attn.output_proj):
            projection.weight.copy_(torch.eye(*projection.weight.shape))
            projection.bias.zero_()
    return attn


def test_samples_by_hand():
    """One head, one level, one point: the value at reference + offset."""
    attn = identity_projections(MSDeformAttn(2, num_heads=1, num_levels=1, num_points=1, dropout=0.0, batch_first=True))
    value = torch.zeros(1, 12, 2)
    value[0, :, 0] = torch.arange(12.0)  # a map of 3 rows and 4 columns, cell (r, c) = 4 r + c
    value[0, :, 1] = 1.0
    query = torch.zeros(1, 1, 2)
    centre = torch.tensor([[[[1.5 / 4, 1.5 / 3]]]])  # centre of row 1, column 1

    def sample(offset, reference=centre):
        with torch.no_grad():
            attn.sampling_offsets.bias.copy_(torch.tensor(offset))
        return attn(query, value=value, reference_points=reference, spatial_shapes=[(3, 4)])[0, 0].tolist()

    assert sample([0.0, 0.0]) == pytest.approx([5.0, 1.0])
    assert sample([1.0, 0.0]) == pytest.approx([6.0, 1.0])  # x: one cell to the right
    assert sample([0.0, 1.0]) == pytest.approx([9.0, 1.0])  # y: one cell down
    assert sample([0.5, -0.5]) == pytest.approx([3.5, 1.0])  # between (0, 1), (0, 2), (1, 1), (1, 2)
    assert sample([2.5, 0.0]) == pytest.approx([3.5, 0.5])  # half a cell over the edge: half of 7 and half of 1
    assert sample([-9.0, 0.0]) == pytest.approx([0.0, 0.0])  # outside
    # offsets to a box count half its size, divided by K = 1: +1 is its right edge
    box = torch.tensor([[[[1.5 / 4, 1.5 / 3, 2 / 4, 2 / 3]]]])
    assert sample([1.0, 0.0], box) == pytest.approx([6.0, 1.0])
    assert sample([0.0, 1.0], box) == pytest.approx([9.0, 1.0])


def test_padding_residual_and_uniform_weights():
    attn = identity_projections(MSDeformAttn(4, num_heads=2, num_levels=2, num_points=1, dropout=0.0, batch_first=True))
    with torch.no_grad():
        attn.sampling_offsets.bias.zero_()
    value = torch.cat([torch.full((1, 30, 4), 2.0), torch.full((1, 6, 4), 10.0)], 1)
    query = torch.full((1, 1, 4), 100.0)
    reference = torch.full((1, 1, 2, 2), 0.5)
    inputs = dict(value=value, reference_points=reference, spatial_shapes=SHAPES)
    assert attn(query, **inputs)[0, 0].tolist() == pytest.approx([106.0] * 4)  # 100 + (2 + 10) / 2
    assert attn(query, identity=query * 0, **inputs)[0, 0].tolist() == pytest.approx([6.0] * 4)
    mask = torch.zeros(1, 36, dtype=torch.bool)
    mask[:, 30:] = True  # the second level is padding: its values count as zero, their weight stays
    assert attn(query, key_padding_mask=mask, **inputs)[0, 0].tolist() == pytest.approx([101.0] * 4)


def test_initialisation_points_outwards():
    attn = MSDeformAttn(64, num_heads=8, num_levels=3, num_points=2)
    assert not attn.sampling_offsets.weight.any() and not attn.attention_weights.weight.any()
    assert not attn.attention_weights.bias.any() and not attn.value_proj.bias.any()
    bias = attn.sampling_offsets.bias.view(8, 3, 2, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(directions):
        for level in range(3):
            for point in range(2):
                expected = torch.tensor(direction, dtype=torch.float32) * (point + 1)
                torch.testing.assert_close(bias[head, level, point], expected, atol=1e-5, rtol=0)
    limit = math.sqrt(6 / 128)  # xavier uniform
    assert 0.9 * limit < attn.value_proj.weight.abs().max() <= limit


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('dims', [2, 4])
@pytest.mark.parametrize('ratio', [1.0, 0.5])
def test_agrees_with_mmcv(batch_first, dims, ratio):
    torch.manual_seed(0)
    kwargs = dict(
        embed_dims=32, num_heads=4, num_levels=2, num_points=3, batch_first=batch_first, value_proj_ratio=ratio
    )
    theirs, ours = MultiScaleDeformableAttention(**kwargs).eval(), MSDeformAttn(**kwargs).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, position, value = (torch.randn(2, n, 32) for n in (7, 7, S))
    mask = torch.rand(2, S) > 0.7
    reference = torch.rand(2, 7, 2, dims)
    if not batch_first:
        query, position, value = (x.transpose(0, 1) for x in (query, position, value))
    inputs = dict(value=value, query_pos=position, key_padding_mask=mask, reference_points=reference)
    shapes = torch.tensor(SHAPES)
    expected = theirs(query, spatial_shapes=shapes, level_start_index=torch.tensor([0, 30]), **inputs)
    for given in (SHAPES, shapes):
        torch.testing.assert_close(ours(query, spatial_shapes=given, **inputs), expected)


@pytest.mark.parametrize('make', [MSDeformAttn, 'accelerate'])
@pytest.mark.parametrize('dims', [2, 4])
@pytest.mark.parametrize('size', list(itertools.product([1, 2], [1, 7], [1, 2])))
def test_reference_points_broadcast_as_in_mmcv(make, size, dims):
    """1 in place of B, Q or L stands for all; outputs and gradients, that of the points summed in turn."""
    kwargs = dict(embed_dims=32, num_heads=4, num_levels=2, dropout=0.0)
    theirs = MultiScaleDeformableAttention(**kwargs)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if make == 'accelerate':
        ours = copy.deepcopy(theirs)
        assert accelerate(ours) == 1
    else:
        ours = make(**kwargs)
        ours.load_state_dict(theirs.state_dict())
    query, value, points = torch.randn(7, 2, 32), torch.randn(S, 2, 32), torch.rand(*size, dims)
    level_start_index = torch.tensor([0, 30])
    results = []
    for module in (theirs, ours):
        leaves = [x.clone().requires_grad_() for x in (query, value, points)]
        output = module(
            leaves[0],
            value=leaves[1],
            reference_points=leaves[2],
            spatial_shapes=torch.tensor(SHAPES),
            level_start_index=level_start_index,
        )
        grads = torch.autograd.grad(output.square().sum(), [*leaves, *module.parameters()])
        results.append([output, *grads])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize('size', [(3, 7, 2, 2), (2, 6, 2, 2), (2, 7, 3, 2), (2, 7, 2), (2, 7, 2, 3)])
def test_other_reference_points_are_refused(size):
    attn = MSDeformAttn(32, num_heads=4, num_levels=2, batch_first=True)
    with pytest.raises(
        (ValueError, RuntimeError), match=r'reference_points must be \[B, Q, L, 2 or 4\] = \[2, 7, 2, 2'
    ):
        attn(
            torch.zeros(2, 7, 32), value=torch.zeros(2, S, 32), reference_points=torch.rand(size), spatial_shapes=SHAPES
        )


def test_bad_input_is_named():
    attn = MSDeformAttn(32, num_heads=4, num_levels=2, batch_first=True)
    query, value, reference = torch.zeros(1, 3, 32), torch.zeros(1, S, 32), torch.zeros(1, 3, 2, 2)
    with pytest.raises(
        ValueError, match=r'num_levels=2 maps with 36 cells in all \(value\), got \[\(6, 5\), \(3, 3\)\]'
    ):
        attn(query, value=value, reference_points=reference, spatial_shapes=[(6, 5), (3, 3)])
    with pytest.raises(ValueError, match='needs reference_points'):
        attn(query, value=value, spatial_shapes=SHAPES)
    with pytest.raises(ValueError, match='embed_dims=30, value_proj_ratio=1.0, num_heads=4'):
        MSDeformAttn(30, num_heads=4)
