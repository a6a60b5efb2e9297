"""R-FCN's head votes as the paper says; each class moves its own bins."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from mmdet_ddetr import get_config
from mmdet_ddetr.heads import RFCNHead
from mmdet_ddetr.testing import make_batch, shrink

ROIS = torch.tensor([[0, 16.0, 16, 120, 90], [1, 40, 8, 100, 100]])


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def head(deformable, **kwargs):
    torch.manual_seed(0)
    return RFCNHead(in_channels=3, feat_channels=4, deformable=deformable, num_classes=2, **kwargs)


def test_votes_by_hand():
    """On maps of one value each, a class gets the mean of its 49 maps; the maps of a class are side by side."""
    model = head(True)
    for pool in (model.cls_pool, model.reg_pool):
        torch.nn.init.zeros_(pool.conv.weight)
        pool.conv.bias.data = torch.arange(len(pool.conv.bias), dtype=torch.float32)
    logits, deltas = model(torch.rand(2, 3, 8, 10), ROIS)
    torch.testing.assert_close(logits, torch.tensor([24.0, 73, 122]).expand(2, 3))  # (0 + ... + 48) / 49 = 24
    torch.testing.assert_close(deltas, torch.tensor([24.0, 73, 122, 171]).expand(2, 4))


def test_offsets_start_at_zero():
    """The deformable head is at first the plain one, and has 1 x 1 convolutions for the offsets beside its own."""
    plain, deformable = head(False), head(True)
    missing, unexpected = deformable.load_state_dict(plain.state_dict(), strict=False)
    parts = [f'{pool}.conv_offset.{name}' for pool in ('cls_pool', 'reg_pool') for name in ('weight', 'bias')]
    assert missing == parts and not unexpected
    assert deformable.cls_pool.conv_offset.out_channels == 2 * 49 * 3  # (x, y), bins, classes and background
    assert deformable.reg_pool.conv_offset.out_channels == 2 * 49
    x = torch.rand(2, 3, 8, 10)
    for a, b in zip(plain(x, ROIS), deformable(x, ROIS)):
        torch.testing.assert_close(a, b)


def test_each_class_moves_its_own_bins():
    model, x = head(True), torch.rand(2, 3, 8, 10)
    before = model(x, ROIS)
    model.cls_pool.conv_offset.bias.data.view(3, -1)[1] = 1.0
    logits, deltas = model(x, ROIS)
    assert ((logits != before[0]).any(0) == torch.tensor([False, True, False])).all()
    torch.testing.assert_close(deltas, before[1])
    model.reg_pool.conv_offset.bias.data[:] = 1.0
    assert (model(x, ROIS)[1] != before[1]).all()


def test_the_map_is_computed_once():
    """Hard examples are mined on it, too."""
    config = get_config('r-fcn_r101-dconv-c5-dpspool_8xb1-8e_coco')
    model = MODELS.build(shrink(config.model)).train()
    calls = []
    model.roi_head.shared_head.register_forward_hook(lambda *args: calls.append(args[2].shape))
    inputs, samples = make_batch([(64, 96), (57, 64)], [2, 1], 80)
    losses = model(inputs, samples, mode='loss')
    assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'acc'} == set(losses)
    assert calls == [(2, 2048, 4, 6)]  # stride 16


def test_what_its_roi_head_refuses_and_does_without():
    settings = dict(type='mmdet_ddetr.RFCNRoIHead', bbox_head=dict(type='mmdet_ddetr.RFCNHead', in_channels=3))
    roi_head, maps = MODELS.build(settings), torch.rand(1, 3, 8, 10)
    assert roi_head._shared((maps,))[0] is maps  # stage 5 may be the backbone's own
    with pytest.raises(ValueError, match='out_indices of the backbone must name one stage.* got 2 maps'):
        roi_head._shared((maps, maps))
    with pytest.raises(ValueError, match='bbox_roi_extractor must be None'):
        MODELS.build(dict(**settings, bbox_roi_extractor=dict(type='SingleRoIExtractor')))
    with pytest.raises(ValueError, match='bbox_head must be an RFCNHead, which pools itself; got BBoxHead'):
        MODELS.build(dict(settings, bbox_head=dict(type='BBoxHead')))
    with pytest.raises(ValueError, match='stride must be a whole number of at least 1, got 0'):
        RFCNHead(stride=0)
