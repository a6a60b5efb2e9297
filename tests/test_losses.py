"""Every loss that mmdet's heads take, against those heads; what does not fit is refused when the model is built."""

import copy
import math

import pytest
import torch
from mmdet.models import losses as mmdet_losses
from mmdet.models import task_modules as mmdet_task_modules
from mmdet.models.dense_heads import DeformableDETRHead, DETRHead
from mmengine.registry import init_default_scope

from mmdet_ddetr import task_modules
from mmdet_ddetr.heads import SetHead
from mmdet_ddetr.testing import make_batch

C, Q, L, B, CLASSES = 16, 9, 3, 2, 5
COSTS = [
    dict(type='FocalLossCost', weight=2.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]
TRAIN_CFG = dict(assigner=dict(type='HungarianAssigner', match_costs=COSTS))


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def truth(counts):
    _, samples = make_batch([(40, 60), (50, 30)], counts, CLASSES)
    return [s.gt_instances for s in samples], [s.metainfo for s in samples]


def head_of(cls, **losses):
    kwargs = {} if cls is DETRHead else dict(num_pred_layer=L)
    losses = copy.deepcopy(losses)  # mmdet's heads write into them
    return cls(num_classes=CLASSES, embed_dims=C, train_cfg=copy.deepcopy(TRAIN_CFG), **kwargs, **losses)


def losses_and_gradients(head, counts):
    torch.manual_seed(1)
    logits = torch.randn(L, B, Q, head.cls_out_channels, requires_grad=True)
    boxes = (torch.rand(L, B, Q, 4) * 0.4 + 0.3).requires_grad_()
    gts, metas = truth(counts)
    encoder = () if type(head) is DETRHead else (None, None)
    losses = head.loss_by_feat(logits, boxes, *encoder, gts, metas)
    return losses, torch.autograd.grad(sum(loss.sum() for loss in losses.values()), (logits, boxes))


def assert_parity(theirs, counts=(3, 2), **losses):
    """The same matching, losses and gradients as the head of mmdet's."""
    init = {} if theirs is DeformableDETRHead else dict(sync_cls_avg_factor=False)
    expected, expected_grads = losses_and_gradients(head_of(theirs, **losses), counts)
    got, grads = losses_and_gradients(head_of(SetHead, **losses, **init), counts)
    assert list(got) == list(expected)
    for name in got:
        torch.testing.assert_close(got[name], expected[name].reshape(()), rtol=1e-5, atol=1e-6)
    for grad, other in zip(grads, expected_grads):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-6)


CLASS_LOSSES = {
    'focal': dict(type='FocalLoss', alpha=0.4, gamma=1.5, loss_weight=2.0),
    'quality focal': dict(type='QualityFocalLoss', beta=1.5, loss_weight=1.5),
    'sigmoid': dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.5),
    'sigmoid, weights': dict(type='CrossEntropyLoss', use_sigmoid=True, class_weight=[1.0, 2.0, 0.5, 3.0, 1.0]),
    'sigmoid, one weight': dict(type='CrossEntropyLoss', use_sigmoid=True, class_weight=2.0),
    'softmax': dict(type='CrossEntropyLoss', loss_weight=1.5),
    'softmax, weights': dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0, 0.5, 3.0, 1.0, 0.1]),
}


@pytest.mark.parametrize('counts', [(3, 2), (0, 4), (0, 0)])
@pytest.mark.parametrize('name', CLASS_LOSSES)
def test_classification_losses(name, counts):
    assert_parity(DeformableDETRHead, counts, loss_cls=CLASS_LOSSES[name])


@pytest.mark.parametrize('loss_cls', [dict(), dict(class_weight=2.0), dict(class_weight=2.0, bg_cls_weight=0.1)])
def test_softmax_of_detr(loss_cls):
    assert_parity(DETRHead, loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, **loss_cls))


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='L1Loss', loss_weight=3.0),
        dict(type='SmoothL1Loss', beta=0.1, loss_weight=3.0),
        dict(type='BalancedL1Loss'),
        dict(type='MSELoss', loss_weight=3.0),
    ],
    ids=lambda loss: loss['type'],
)
def test_box_losses(loss):
    assert_parity(DeformableDETRHead, loss_cls=CLASS_LOSSES['focal'], loss_bbox=loss)


IOU_LOSSES = ('IoULoss', 'BoundedIoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss', 'EIoULoss', 'SIoULoss')


@pytest.mark.parametrize('name', IOU_LOSSES)
def test_iou_losses(name):
    assert_parity(DeformableDETRHead, loss_cls=CLASS_LOSSES['focal'], loss_iou=dict(type=name, loss_weight=1.5))


@pytest.mark.parametrize('mode', ['linear', 'square', 'log'])
def test_modes_of_the_iou_loss(mode):
    assert_parity(DeformableDETRHead, loss_cls=CLASS_LOSSES['focal'], loss_iou=dict(type='IoULoss', mode=mode))


def test_varifocal_loss_by_hand():
    """Its target is the IoU for the target's class, which weighs that logit, and 0 for all others (mmdet has no head
    for queries that takes it)."""
    head = SetHead(2, C, num_pred_layer=1, loss_cls=dict(type='VarifocalLoss', alpha=0.75, gamma=2.0))
    logits = torch.tensor([[[[0.5, -1.0], [1.5, 0.2]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]]])  # the first is twice as high as its target
    gts, metas = truth((1, 0))
    gts, metas = gts[:1], [dict(img_shape=(10, 10))]
    gts[0].bboxes, gts[0].labels = torch.tensor([[3.0, 4.0, 7.0, 6.0]]), torch.tensor([1])
    loss = head.loss_by_feat(logits, boxes, None, None, gts, metas)['loss_cls'].item()

    def cross_entropy(x, target):
        p = 1 / (1 + math.exp(-x))
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    negative = sum(0.75 / (1 + math.exp(-x)) ** 2 * cross_entropy(x, 0) for x in (0.5, 1.5, 0.2))
    assert loss == pytest.approx(negative + 0.5 * cross_entropy(-1.0, 0.5), rel=1e-5)


class OneNumberLoss(torch.nn.Module):
    """Someone's loss that reduces whatever it is asked for."""

    use_sigmoid = True

    def forward(self, pred, target, reduction_override=None):
        return pred.sum()


@pytest.mark.parametrize(
    ('losses', 'message'),
    [
        (dict(loss_cls=dict(type=OneNumberLoss)), r'loss_cls: OneNumberLoss must give a value for each of logits'),
        (dict(loss_bbox=dict(type=OneNumberLoss)), r'loss_bbox: OneNumberLoss must give a value for each of boxes'),
        (dict(loss_cls=dict(type='FocalLoss', activated=True)), 'loss_cls: FocalLoss does not work on logits'),
        (dict(loss_cls=dict(type='GaussianFocalLoss')), 'loss_cls: GaussianFocalLoss does not work on logits'),
        (dict(loss_cls=dict(type='L1Loss')), 'loss_cls: L1Loss does not work on logits'),
        (dict(loss_cls=dict(type='SeesawLoss', num_classes=CLASSES)), 'loss_cls: SeesawLoss must give a value'),
        (dict(loss_cls=dict(type='GHMC')), 'loss_cls: GHMC must give a value'),
        (dict(loss_cls=dict(type='CrossEntropyLoss', use_mask=True)), 'loss_cls: CrossEntropyLoss must give a value'),
        (
            dict(loss_cls=dict(type='CrossEntropyLoss', class_weight=[1.0] * CLASSES)),
            'loss_cls: class_weight must have 6 numbers, one a class, got 5',
        ),
        (
            dict(loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1)),
            'loss_cls: bg_cls_weight goes with softmax and one number as class_weight, .* class_weight=None',
        ),
        (
            dict(train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4))),
            'train_cfg.assigner: MaxIoUAssigner does not match queries',
        ),
    ],
    ids=lambda value: '' if isinstance(value, str) else None,
)
def test_others_are_refused_when_the_model_is_built(losses, message):
    with pytest.raises(ValueError, match=message):
        SetHead(CLASSES, C, **losses)


def test_classes_in_place_of_names():
    """As in mmengine's pure-Python configs: mmdet's classes are read as this package's, as their names are."""
    for module in (task_modules, mmdet_task_modules):
        costs = [
            dict(type=module.FocalLossCost, weight=3.0),
            dict(type=module.BBoxL1Cost, weight=5.0, box_format='xywh'),
            dict(type=module.IoUCost, iou_mode='giou', weight=2.0),
        ]
        assigner = dict(type=module.HungarianAssigner, match_costs=costs)
        head = SetHead(
            CLASSES,
            C,
            loss_cls=dict(type=mmdet_losses.QualityFocalLoss),
            loss_bbox=dict(type=mmdet_losses.SmoothL1Loss),
            train_cfg=dict(assigner=assigner),
        )
        assert type(head.assigner) is task_modules.HungarianAssigner
        assert head.assigner.fused_cost.cls.weight == 3.0
        assert assigner['type'] is module.HungarianAssigner, 'the config was changed'
