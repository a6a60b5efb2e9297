import copy

import pytest
import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmdet_ddetr.heads import SetHead
from mmdet_ddetr.testing import make_batch

C, Q, L, B = 16, 9, 3, 2
CLASSES = 5


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def make_head(**kwargs):
    torch.manual_seed(0)
    head = SetHead(num_classes=CLASSES, embed_dims=C, num_pred_layer=L, **kwargs)
    head.init_weights()
    return head


def predictions(channels=CLASSES):
    torch.manual_seed(1)
    return torch.randn(L, B, Q, channels), torch.rand(L, B, Q, 4) * 0.4 + 0.3


def truth(counts=(3, 2)):
    _, samples = make_batch([(40, 60), (50, 30)], counts, CLASSES)
    return [s.gt_instances for s in samples], [s.metainfo for s in samples]


def test_focal_set_loss_against_a_scalar_loop():
    head = make_head()
    logits, boxes = predictions()
    gts, metas = truth()
    losses = head.loss_by_feat(logits, boxes, None, None, gts, metas)
    targets = head.collect_targets(gts, metas)
    (match,) = head.assigner.match([(logits, boxes)], [targets])
    for layer in range(L):
        focal, l1, giou = 0.0, 0.0, 0.0
        matched = {
            (b, q): t
            for i, b, q, t in zip(*(x.tolist() for x in (match.layer, match.image, match.query, match.target)))
            if i == layer
        }
        for b in range(B):
            for q in range(Q):
                target = matched.get((b, q))
                for c in range(CLASSES):
                    p = logits[layer, b, q, c].double().sigmoid().item()
                    if target is not None and targets.labels[target] == c:
                        focal += -0.25 * (1 - p) ** 2 * torch.tensor(p).log().item()
                    else:
                        focal += -0.75 * p**2 * torch.tensor(1 - p).log().item()
                if target is not None:
                    h, w = metas[b]['img_shape']
                    x1, y1, x2, y2 = gts[b].bboxes[target - 3 * b].tolist()
                    gt = torch.tensor([(x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h])
                    l1 += (boxes[layer, b, q] - gt).abs().sum().item()
                    pair = [bbox_cxcywh_to_xyxy(x[None]) for x in (boxes[layer, b, q], gt)]
                    giou += 1 - bbox_overlaps(*pair, mode='giou', eps=1e-12).item()
        prefix = '' if layer == L - 1 else f'd{layer}.'
        assert losses[f'{prefix}loss_cls'].item() == pytest.approx(2 * focal / 5, rel=1e-4)
        assert losses[f'{prefix}loss_bbox'].item() == pytest.approx(5 * l1 / 5, rel=1e-4)
        assert losses[f'{prefix}loss_iou'].item() == pytest.approx(2 * giou / 5, rel=1e-4)


@pytest.mark.parametrize('counts', [(3, 2), (0, 0), (0, 12)])
def test_softmax_loss_equals_mmdets_detr_head(counts):
    loss_cls = dict(type='CrossEntropyLoss', bg_cls_weight=0.1, use_sigmoid=False, loss_weight=1.0, class_weight=1.0)
    costs = [
        dict(type='ClassificationCost', weight=1.0),
        dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='IoUCost', iou_mode='giou', weight=2.0),
    ]
    train_cfg = dict(assigner=dict(type='HungarianAssigner', match_costs=costs))
    theirs = DETRHead(CLASSES, C, loss_cls=copy.deepcopy(loss_cls), train_cfg=train_cfg, test_cfg=dict(max_per_img=4))
    ours = make_head(loss_cls=loss_cls, train_cfg=train_cfg, test_cfg=dict(max_per_img=4), sync_cls_avg_factor=False)
    assert loss_cls['bg_cls_weight'] == 0.1, 'the config was changed'
    outputs = predictions(CLASSES + 1)
    gts, metas = truth(counts)
    expected = theirs.loss_by_feat(*outputs, gts, metas)
    losses = ours.loss_by_feat(*outputs, None, None, gts, metas)
    assert list(losses) == list(expected)
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name].squeeze(), rtol=1e-5, atol=1e-6)
    for a, b in zip(ours.predict_by_feat(*outputs, metas), theirs.predict_by_feat(*outputs, metas, rescale=True)):
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.bboxes, b.bboxes)
        assert torch.equal(a.labels, b.labels)


def test_predict_by_hand():
    head = make_head(test_cfg=dict(max_per_img=3))
    logits = torch.full((1, 1, 2, CLASSES), -9.0)
    logits[0, 0, 0, 3], logits[0, 0, 1, 1], logits[0, 0, 0, 4] = 2.0, 3.0, 1.0
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.4], [0.9, 0.5, 0.4, 1.0]]]])
    meta = dict(img_shape=(100, 200), scale_factor=(0.5, 0.25))
    (result,) = head.predict_by_feat(logits, boxes, [meta])
    assert result.labels.tolist() == [1, 3, 4]
    torch.testing.assert_close(result.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    # [140, 0, 220, 100] in the input, cut at its width of 200, divided by the scale
    torch.testing.assert_close(result.bboxes[0], torch.tensor([280.0, 0.0, 400.0, 400.0]))
    torch.testing.assert_close(result.bboxes[1], torch.tensor([160.0, 120.0, 240.0, 280.0]))
    torch.testing.assert_close(result.bboxes[2], result.bboxes[1])
    (result,) = head.predict_by_feat(logits, boxes, [meta], rescale=False)
    torch.testing.assert_close(result.bboxes[1], torch.tensor([80.0, 30.0, 120.0, 70.0]))


def test_initialisation():
    head = make_head()
    for branch in head.cls_branches:
        torch.testing.assert_close(branch.bias.sigmoid(), torch.full((CLASSES,), 0.01))
    assert head.reg_branches[0][-1].bias.tolist() == [0, 0, -2, -2]
    assert head.reg_branches[1][-1].bias.tolist() == [0, 0, 0, 0]
    assert not any(branch[-1].weight.any() for branch in head.reg_branches)
    two_stage = make_head(as_two_stage=True)
    assert two_stage.reg_branches[0][-1].bias.tolist() == [0, 0, 0, 0]


def test_sharing():
    shared, own = make_head(share_pred_layer=True), make_head()
    assert shared.cls_branches[0] is shared.cls_branches[2] and shared.reg_branches[0] is shared.reg_branches[1]
    assert own.cls_branches[0] is not own.cls_branches[2]
    assert list(shared.state_dict()) == list(own.state_dict()), 'one name per layer, shared or not, as mmdet has it'


def test_last_layer_alone_equals_all_layers():
    head = make_head()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden, reference = torch.randn(L, B, Q, C), torch.rand(L, B, Q, 2)
    for everything, last in zip(head(hidden, reference), head(hidden[-1:], reference[-1:]), strict=True):
        torch.testing.assert_close(everything[-1], last[0])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_losses_of_16_bit_predictions_are_computed_in_fp32(dtype):
    head = make_head()
    logits, boxes = predictions()
    logits[..., 0] = 30.0  # log(1 - sigmoid) of this is -inf in 16 bits
    gts, metas = truth()
    narrow = [logits.to(dtype), boxes.to(dtype)]
    expected = head.loss_by_feat(*(x.float() for x in narrow), None, None, gts, metas)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = head.loss_by_feat(*narrow, None, None, gts, metas)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_foreign_names_are_read_as_ours():
    from mmdet_ddetr.task_modules import HungarianAssigner

    for scope in ('', 'mmdet.', 'mmdet_ddetr.'):
        costs = [dict(type=f'{scope}FocalLossCost', weight=3.0)]
        assigner = dict(type=f'{scope}HungarianAssigner', match_costs=costs, _scope_='mmdet')
        head = make_head(train_cfg=dict(assigner=assigner))
        assert type(head.assigner) is HungarianAssigner
        assert head.assigner.match_costs[0].weight == 3.0
        assert assigner['type'] == f'{scope}HungarianAssigner', 'the config was changed'


def test_box_types_are_taken_too():
    from mmdet.structures.bbox import HorizontalBoxes

    head = make_head()
    gts, metas = truth()
    typed = [InstanceData(bboxes=HorizontalBoxes(gt.bboxes), labels=gt.labels) for gt in gts]
    torch.testing.assert_close(head.collect_targets(typed, metas).boxes, head.collect_targets(gts, metas).boxes)


def test_registered():
    head = MODELS.build(dict(type='mmdet_ddetr.SetHead', num_classes=CLASSES, embed_dims=C))
    assert isinstance(head, SetHead)
