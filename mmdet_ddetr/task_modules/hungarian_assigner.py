"""One-to-one matching of queries and targets (DETR, section 3.1), for all layers and images in one pass."""

from dataclasses import dataclass

import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmengine.structures import InstanceData
from torch import Tensor

from mmdet_ddetr.ops import linear_sum_assignment
from mmdet_ddetr.registry import TASK_UTILS, our_class

from .fused_cost import FusedCost
from .match_costs import MatchCost, Pairs, Predictions, Targets


@dataclass
class Match:
    """The matched (query, target) pairs of one set of predictions, layer by layer.

    Attributes:
        layer, image, query: where each matched query stands in [L, B, Q].
        target: index of its target in ``Targets``.
        per_layer: pairs in one layer, the same for all (host integer).
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
    per_layer: int

    @property
    def last_layer(self) -> 'Match':
        """The pairs of the last layer alone."""
        last = slice(len(self.target) - self.per_layer, None)
        return Match(self.layer[last], self.image[last], self.query[last], self.target[last], self.per_layer)


@TASK_UTILS.register_module()
class HungarianAssigner(BaseAssigner):
    """The cheapest one-to-one assignment under a sum of costs.

    ``match`` serves our heads: one cost computation for all layers and images, one copy to the host. ``assign`` is
    mmdet's interface for one image, so that mmdet's own DETR-like heads can use this class too.

    Args:
        match_costs: configs of the costs. mmdet's names are read as ours (``FocalLossCost``, ``ClassificationCost``,
            ``BBoxL1Cost``, ``IoUCost``), which take all layers and images at once.
    """

    def __init__(self, match_costs: dict | list[dict]):
        configs = [match_costs] if isinstance(match_costs, dict) else list(match_costs)
        if not configs:
            raise ValueError('match_costs must name at least one cost, got an empty list')
        self.match_costs = [self._build(config) for config in configs]
        self.fused_cost = FusedCost.of(self.match_costs)

    @staticmethod
    def _build(config: dict) -> MatchCost:
        config = {key: value for key, value in config.items() if key != '_scope_'}
        cls = our_class(config['type'], TASK_UTILS)
        if not isinstance(cls, type) or not issubclass(cls, MatchCost):
            known = sorted(k for k, v in TASK_UTILS.module_dict.items() if issubclass(v, MatchCost))
            name = getattr(cls, '__name__', config['type'])
            raise ValueError(
                f'match_costs: {name} is no cost of classes and boxes, batched over layers; there are {known}, '
                'and subclasses of mmdet_ddetr.task_modules.MatchCost'
            )
        return cls(**{key: value for key, value in config.items() if key != 'type'})

    @torch.no_grad()
    def cost(
        self,
        logits: Tensor,  # [L, B, Q, C]
        boxes: Tensor,  # [L, B, Q, 4] (cx, cy, w, h) in [0, 1]
        targets: Targets,
    ) -> Tensor:  # [L, T, Q]
        """Cost of every (target, query) pair of the same image, in fp32."""
        with torch.autocast(logits.device.type, enabled=False):
            logits, boxes = logits.float(), boxes.float()
            if self.fused_cost and FusedCost.runs_on(logits.device.type):
                return self.fused_cost(logits, boxes, targets)
            pairs = Pairs(Predictions(logits, boxes), targets)
            return sum(match_cost(pairs) for match_cost in self.match_costs)

    def match(self, predictions: list[tuple[Tensor, Tensor]], targets: list[Targets]) -> list[Match]:
        """Match several sets of predictions (say decoder and encoder) with one copy to the host.

        Args:
            predictions: (logits [L, B, Q, C], boxes [L, B, Q, 4]) of each set; L and Q may differ between sets.
            targets: the targets of each set; same images and counts, labels may differ.

        Raises:
            ValueError: if a cost is not finite; it names the layer and the image.
        """
        layers = [len(logits) for logits, _ in predictions]
        queries = [logits.shape[2] for logits, _ in predictions]
        costs = torch.cat([self.cost(*outputs, t).flatten() for outputs, t in zip(predictions, targets)])
        matched = linear_sum_assignment(costs, layers, queries, [count for t in targets for count in t.counts])
        per_layer = [sum(min(Q, count) for count in t.counts) for Q, t in zip(queries, targets)]
        matches = matched.split([L * pairs for L, pairs in zip(layers, per_layer)], 1)
        return [Match(*match, per_layer=pairs) for match, pairs in zip(matches, per_layer)]

    def assign(
        self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: dict | None = None, **kwargs
    ) -> AssignResult:
        """mmdet's interface: one image, one layer.

        Args:
            pred_instances: ``scores`` [Q, C] (logits) and ``bboxes`` [Q, 4] (x1, y1, x2, y2) in pixels.
            gt_instances: ``labels`` [T] and ``bboxes`` [T, 4] in pixels.
            img_meta: ``img_shape`` (h, w) of the unpadded image.

        Returns:
            gt_inds [Q]: 0 background, i + 1 target i; labels [Q]: -1 background.
        """
        h, w = img_meta['img_shape'][:2]
        size = gt_instances.bboxes.new_tensor([[w, h, w, h]], dtype=torch.float32)
        labels = gt_instances.labels
        targets = Targets(
            boxes=bbox_xyxy_to_cxcywh(gt_instances.bboxes.float() / size),
            labels=labels,
            image=torch.zeros_like(labels),
            counts=[len(labels)],
            sizes=size,
        )
        boxes = bbox_xyxy_to_cxcywh(pred_instances.bboxes.float() / size)
        (match,) = self.match([(pred_instances.scores[None, None], boxes[None, None])], [targets])
        gt_inds = labels.new_zeros(len(boxes), dtype=torch.long)
        assigned = labels.new_full((len(boxes),), -1, dtype=torch.long)
        gt_inds[match.query] = match.target + 1
        assigned[match.query] = labels[match.target]
        return AssignResult(len(labels), gt_inds, None, labels=assigned)
