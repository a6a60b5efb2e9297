"""Learned positions: values by hand, mmdet's parameters, and both detectors with them."""

import pytest
import torch
from mmdet.models.layers import LearnedPositionalEncoding as MMDetLearnedPositionalEncoding
from mmengine.registry import init_default_scope

from mmdet_ddetr import get_config
from mmdet_ddetr.layers import LearnedPositionalEncoding
from mmdet_ddetr.registry import MODELS
from mmdet_ddetr.testing import make_batch, shrink


def test_values_by_hand():
    encoding = LearnedPositionalEncoding(num_feats=1, row_num_embed=2, col_num_embed=3)
    with torch.no_grad():
        encoding.col_embed.weight.copy_(torch.tensor([[1.0], [2], [3]]))
        encoding.row_embed.weight.copy_(torch.tensor([[10.0], [20]]))
    x, y = [[1.0, 2, 3], [1, 2, 3]], [[10.0, 10, 10], [20, 20, 20]]
    expected = torch.tensor([x, y]).expand(4, -1, -1, -1)
    torch.testing.assert_close(encoding(None, input=torch.zeros(4, 8, 2, 3)), expected)
    padded = torch.ones(4, 2, 3, dtype=torch.bool)
    torch.testing.assert_close(encoding(padded, input=torch.zeros(4, 8, 2, 3)), expected)


def test_parameters_are_those_of_mmdet():
    theirs, ours = MMDetLearnedPositionalEncoding(8), LearnedPositionalEncoding(8)
    theirs.init_weights()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    mask = torch.zeros(2, 5, 7)
    torch.testing.assert_close(ours(mask, input=torch.zeros(2, 3, 5, 7)), theirs(mask))
    ours.init_weights()
    for embedding in (ours.row_embed.weight, ours.col_embed.weight):  # uniform in [0, 1], as in the official code
        assert 0 <= embedding.min() < 0.1 and 0.9 < embedding.max() <= 1


def test_map_too_large_is_named():
    with pytest.raises(ValueError, match='row_num_embed x col_num_embed = 50 x 50 cells, got 100 x 167'):
        LearnedPositionalEncoding(8)(None, input=torch.zeros(1, 16, 100, 167))


@pytest.mark.parametrize('name', ['detr_r50_16xb4-500e_coco', 'deformable-detr_r50-single-scale_16xb2-50e_coco'])
@pytest.mark.parametrize('shapes', [[(64, 96), (57, 64)], [(64, 96), (64, 96)]], ids=['padded', 'not padded'])
def test_in_a_detector(name, shapes):
    """From the config, instead of sines, into the transformer."""
    cfg = shrink(get_config(name).model)
    cfg.positional_encoding = dict(type='mmdet_ddetr.LearnedPositionalEncoding', num_feats=128)
    init_default_scope('mmdet')
    model = MODELS.build(cfg)
    _, samples = make_batch(shapes, [2, 1], 80)
    with torch.no_grad():
        encoder_inputs, _ = model.pre_transformer((torch.zeros(2, 256, 2, 3),), samples)
    positions = encoder_inputs['feat_pos']  # [2, 2*3, 256], rows first
    if model.level_embed is not None:
        positions = positions - model.level_embed
    encoding = model.positional_encoding
    torch.testing.assert_close(positions[:, 5, :128], encoding.col_embed.weight[2].expand(2, -1))
    torch.testing.assert_close(positions[:, 5, 128:], encoding.row_embed.weight[1].expand(2, -1))
