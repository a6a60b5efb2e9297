"""Losses of the head, from configs: mmdet's, or any that give values without reduction; others are refused here."""

from collections.abc import Callable

import torch
from mmdet.models.losses import FocalLoss, QualityFocalLoss, VarifocalLoss
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor, nn

from mmdet_ddetr.ops import sigmoid_focal_loss
from mmdet_ddetr.registry import MODELS


def build_class_loss(config: dict, num_classes: int) -> tuple[nn.Module, float]:
    """The classification loss, and how much a query without object counts in its normaliser.

    Args:
        config: mmdet's. ``class_weight`` is one number for all classes, beside which ``bg_cls_weight`` may stand for
            "no object" (DETR), or a number for each; with softmax "no object" is the last.

    Raises:
        ValueError: the loss cannot be used on logits and labels of queries, or the weights do not fit.
    """
    config = dict(config)
    weight, background = config.get('class_weight'), 0.0
    channels = num_classes
    if isinstance(weight, (int, float)):
        if not config.get('use_sigmoid', False):  # softmax over num_classes + 1, the last one "no object"
            channels += 1
            background = config.pop('bg_cls_weight', weight)
        config['class_weight'] = [weight] * num_classes + [background] * (channels - num_classes)
    if 'bg_cls_weight' in config:
        raise ValueError(
            'loss_cls: bg_cls_weight goes with softmax and one number as class_weight, '
            f'got use_sigmoid={config.get("use_sigmoid", False)} and class_weight={weight}'
        )
    loss = MODELS.build(config)
    if getattr(loss, 'use_sigmoid', None) is None or getattr(loss, 'activated', False):
        raise ValueError(
            f'loss_cls: {_name(config)} does not work on logits of sigmoid or softmax (use_sigmoid, activated=False); '
            'take FocalLoss, QualityFocalLoss, VarifocalLoss or CrossEntropyLoss'
        )
    channels = num_classes + (not loss.use_sigmoid)
    weights = getattr(loss, 'class_weight', None)
    if weights is not None and len(weights) != channels:
        raise ValueError(f'loss_cls: class_weight must have {channels} numbers, one a class, got {len(weights)}')
    logits, labels = torch.zeros(2, channels, device='cpu'), torch.tensor([0, num_classes], device='cpu')
    quality = torch.ones(2, device='cpu')
    _try(config, 'loss_cls', lambda: class_loss(loss, logits, labels, lambda: quality), [(2,), (2, channels)])
    return loss, background


def build_box_loss(config: dict, name: str) -> nn.Module:
    """A loss of pairs of boxes; ``name`` is its argument's.

    Raises:
        ValueError: it does not give a value for each pair, or for each of a pair's four numbers.
    """
    loss = MODELS.build(config)
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.2, 0.1, 0.7, 0.9]], device='cpu')
    _try(config, name, lambda: loss(boxes, boxes + 0.1, reduction_override='none'), [(2,), (2, 4)])
    return loss


def class_loss(loss: nn.Module, logits: Tensor, labels: Tensor, quality: Callable[[], Tensor]) -> Tensor:
    """Values [N] or [N, C] of logits [N, C] and labels [N], whose last, C with a sigmoid, is "no object".

    Args:
        quality: gives the IoU [N] of each query's box with its target's, 0 without target; only some losses ask.
    """
    if type(loss) is FocalLoss:  # the same, in one pass over the logits
        return loss.loss_weight * sigmoid_focal_loss(logits, labels, loss.alpha, loss.gamma, sum_classes=True)
    if isinstance(loss, QualityFocalLoss):
        return loss(logits, (labels, quality()), reduction_override='none')
    if isinstance(loss, VarifocalLoss):
        target = torch.nn.functional.one_hot(labels, logits.shape[1] + 1)[:, :-1] * quality()[:, None]
        return loss(logits, target, reduction_override='none')
    return loss(logits, labels, reduction_override='none')


@torch.no_grad()
def box_quality(pred: Tensor, target: Tensor) -> Tensor:  # [N, 4] (cx, cy, w, h), twice -> [N]
    """IoU of each predicted box with its target."""
    return bbox_overlaps(bbox_cxcywh_to_xyxy(pred), bbox_cxcywh_to_xyxy(target), is_aligned=True)


def _try(config: dict, name: str, compute: Callable[[], Tensor], shapes: list[tuple[int, ...]]) -> None:
    """Refuse a loss when the model is built, not in the first iteration."""
    try:
        with torch.no_grad(), torch.device('cpu'):
            values = compute()
        problem = None if getattr(values, 'shape', None) in shapes else f'it gave {getattr(values, "shape", values)}'
    except Exception as error:  # of whoever's loss
        problem = f'{type(error).__name__}: {error}'
    if problem:
        what = 'logits [N, classes] and labels [N]' if name == 'loss_cls' else 'boxes [N, 4] and their targets'
        raise ValueError(
            f"{name}: {_name(config)} must give a value for each of {what}, called with reduction_override='none' "
            f'({problem})'
        )


def _name(config: dict) -> str:
    return getattr(config['type'], '__name__', config['type'])
