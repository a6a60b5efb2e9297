"""Class and box branches, set loss and predict: the one head of the family."""

import copy
from dataclasses import replace

import torch
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList, reduce_mean
from mmengine.model import BaseModule, bias_init_with_prob, constant_init
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ddetr.layers import QueryGroups, matrix_nms, refine_box, shift_box
from mmdet_ddetr.registry import MODELS, TASK_UTILS, our_class
from mmdet_ddetr.task_modules import Match, Targets, task_aligned_match

from .labels import check_labels
from .losses import box_quality, build_box_loss, build_class_loss, class_loss

FOCAL_LOSS = dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0)
L1_LOSS = dict(type='mmdet.L1Loss', loss_weight=5.0)
GIOU_LOSS = dict(type='mmdet.GIoULoss', loss_weight=2.0)
ASSIGNER = dict(
    type='HungarianAssigner',
    match_costs=[
        dict(type='FocalLossCost', weight=2.0),
        dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='IoUCost', iou_mode='giou', weight=2.0),
    ],
)


@MODELS.register_module()
class SetHead(BaseModule):
    """Predicts a set: a class and a box per query and layer, trained with one-to-one matching.

    Takes the config and state_dict of mmdet's ``DeformableDETRHead``, ``DETRHead`` and ``DABDETRHead``.

    Args:
        num_classes: classes without background.
        embed_dims: channels C of the decoder's states.
        num_reg_fcs: hidden layers of the box branch.
        sync_cls_avg_factor: average the classification loss's normaliser over all ranks; default: with a sigmoid loss,
            as in the official codes.
        loss_cls: config of a classification loss: mmdet's ``FocalLoss``, ``QualityFocalLoss`` and ``CrossEntropyLoss``
            with a sigmoid or a softmax, as its heads take them; ``VarifocalLoss``, which wants the box's IoU as the
            score of the target's class; or any that gives values without reduction for logits [N, C] and labels [N].
        loss_bbox: config of a loss of (cx, cy, w, h) in [0, 1].
        loss_iou: config of a loss of corners in pixels.
        share_pred_layer: one branch for all layers (no box refinement) instead of one each.
        num_pred_layer: branches; one more than decoder layers with a two-stage encoder head.
        as_two_stage: the last branch scores the encoder's proposals.
        classifies_proposals: it tells their classes, too. By default it says "object" alone, as class 0.
        dense_loss: a further branch, in training only, for all cells of a two-stage detector's encoder. Each object
            teaches the cells that find it best, so that the encoder has many positives an object where one-to-one
            matching gives it one. ``loss_weight`` (default 1) beside the decoder's losses, and ``topk``, ``alpha``,
            ``beta`` of ``task_aligned_match``; {} for the defaults.
        relative_boxes: boxes are those they start from, moved by shares of their size (``shift_box``), where they start
            from boxes; by default the sum is one before a sigmoid (``refine_box``).
        wh_bias: initial bias of w and h in the first box branch (0 with ``as_two_stage``). All else in the last layer
            of the box branches starts at 0, so boxes start at their reference. None: PyTorch's initialisation, for
            boxes without a reference (DETR).
        reference_eps: bounds the references' distance from 0 and 1 where boxes are added to them.
        train_cfg: ``assigner``; mmdet's assigner and cost names are read as ours.
        test_cfg: ``max_per_img``, detections kept per image (default: one per query); ``matrix_nms``, the sigma > 0
            by which duplicates lose score (default: none do, as in the papers).
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int = 256,
        num_reg_fcs: int = 2,
        sync_cls_avg_factor: bool | None = None,
        loss_cls: dict = FOCAL_LOSS,
        loss_bbox: dict = L1_LOSS,
        loss_iou: dict = GIOU_LOSS,
        share_pred_layer: bool = False,
        num_pred_layer: int = 6,
        as_two_stage: bool = False,
        classifies_proposals: bool = False,
        dense_loss: dict | None = None,
        relative_boxes: bool = False,
        wh_bias: float | None = -2.0,
        reference_eps: float = 1e-5,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.num_classes = num_classes
        self.embed_dims = embed_dims
        self.num_reg_fcs = num_reg_fcs
        self.share_pred_layer = share_pred_layer
        self.num_pred_layer = num_pred_layer
        self.as_two_stage = as_two_stage
        self.classifies_proposals = classifies_proposals
        self.dense_loss = dense_loss
        self.relative_boxes = relative_boxes
        self.wh_bias = wh_bias
        self.reference_eps = reference_eps
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg or {}
        self.assigner = self._build_assigner((train_cfg or {}).get('assigner', ASSIGNER))
        self.loss_cls, self.bg_cls_weight = build_class_loss(loss_cls, num_classes)
        self.loss_bbox = build_box_loss(loss_bbox, 'loss_bbox')
        self.loss_iou = build_box_loss(loss_iou, 'loss_iou')
        sigma = self.test_cfg.get('matrix_nms')
        if sigma is not None and not sigma > 0:
            raise ValueError(f'test_cfg.matrix_nms must be a number above 0, as SOLOv2 has 2.0, or None, got {sigma}')
        if dense_loss is not None and not (as_two_stage and self.loss_cls.use_sigmoid):
            raise ValueError('dense_loss needs as_two_stage=True and a loss_cls with use_sigmoid=True')
        self.cls_out_channels = num_classes + (0 if self.loss_cls.use_sigmoid else 1)
        self.sync_cls_avg_factor = self.loss_cls.use_sigmoid if sync_cls_avg_factor is None else sync_cls_avg_factor
        self._init_branches()

    @staticmethod
    def _build_assigner(config: dict):
        config = {key: value for key, value in config.items() if key != '_scope_'}
        config['type'] = our_class(config['type'], TASK_UTILS)
        assigner = TASK_UTILS.build(config)
        if not hasattr(assigner, 'match'):
            raise ValueError(
                f'train_cfg.assigner: {type(assigner).__name__} does not match queries of all layers at once; take '
                "HungarianAssigner, mmdet's name and arguments, or a class with its method match()"
            )
        return assigner

    def _init_branches(self) -> None:
        cls_branch = nn.Linear(self.embed_dims, self.cls_out_channels)
        reg_branch = []
        for _ in range(self.num_reg_fcs):
            reg_branch += [nn.Linear(self.embed_dims, self.embed_dims), nn.ReLU()]
        reg_branch = nn.Sequential(*reg_branch, nn.Linear(self.embed_dims, 4))
        clone = (lambda module: module) if self.share_pred_layer else copy.deepcopy
        self.cls_branches = nn.ModuleList(clone(cls_branch) for _ in range(self.num_pred_layer))
        self.reg_branches = nn.ModuleList(clone(reg_branch) for _ in range(self.num_pred_layer))
        if self.dense_loss is not None:  # the last, of its own in any case
            self.cls_branches.append(copy.deepcopy(cls_branch))
            self.reg_branches.append(copy.deepcopy(reg_branch))

    def init_weights(self) -> None:
        """Class prior 0.01 with a sigmoid loss; first-layer boxes of sigmoid(wh_bias), by default 0.12 of the image."""
        if self.loss_cls.use_sigmoid:
            for branch in self.cls_branches:
                nn.init.constant_(branch.bias, bias_init_with_prob(0.01))
        if self.wh_bias is None:
            return
        for branch in self.reg_branches:
            constant_init(branch[-1], 0, bias=0)
        if not self.as_two_stage:
            nn.init.constant_(self.reg_branches[0][-1].bias.data[2:], self.wh_bias)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        """Accept the names of mmdet's ``DETRHead`` and ``DABDETRHead``, where one branch serves all layers."""
        last = self.num_reg_fcs
        names = {'fc_cls': 'cls_branches.{}', 'fc_reg': f'reg_branches.{{}}.{2 * last}'}
        for i in range(last):
            names[f'reg_ffn.layers.{i}' + ('' if i == last - 1 else '.0')] = f'reg_branches.{{}}.{2 * i}'
        for i in range(last + 1):
            names[f'fc_reg.layers.{i}'] = f'reg_branches.{{}}.{2 * i}'
        for theirs, ours in names.items():
            for kind in ('weight', 'bias'):
                tensor = state_dict.pop(f'{prefix}{theirs}.{kind}', None)
                if tensor is not None:
                    for layer in range(self.num_pred_layer):
                        state_dict[f'{prefix}{ours.format(layer)}.{kind}'] = tensor
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def refine(self, layer: int, hidden: Tensor, reference: Tensor) -> Tensor:
        """Boxes of decoder layer ``layer``: hidden [B, Q, C], reference [B, Q, 2 or 4] -> [B, Q, 4]."""
        delta = self.reg_branches[layer](hidden)
        if self.relative_boxes and reference is not None and reference.shape[-1] == 4:
            return shift_box(delta, reference)
        return refine_box(delta, reference, self.reference_eps)

    def boxes_of_cells(self, branch: int, features: Tensor, places: Tensor) -> Tensor:
        """Boxes of an encoder's cells, by one of the branches: [B, S, C], [B, S, 4] before the sigmoid -> [B, S, 4]."""
        delta = self.reg_branches[branch](features).float()
        return shift_box(delta, places.sigmoid()) if self.relative_boxes else (delta + places).sigmoid()

    def forward(
        self,
        hidden: Tensor,  # [L, B, Q, C]
        reference: Tensor | None = None,  # [L, B, Q, 2 or 4]
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """Classes and boxes of the last L decoder layers.

        Returns:
            logits [L, B, Q, classes] and boxes [L, B, Q, 4] in (cx, cy, w, h), normalised by the unpadded image.
        """
        first = self.num_pred_layer - self.as_two_stage - hidden.shape[0]
        logits = torch.stack([self.cls_branches[first + i](state) for i, state in enumerate(hidden)])
        boxes = torch.stack(
            [
                self.refine(first + i, state, None if reference is None else reference[i])
                for i, state in enumerate(hidden)
            ]
        )
        return logits, boxes

    # ---------------------------------------------------------------- loss

    def loss(
        self,
        hidden: Tensor,  # [L, B, Q, C]
        batch_data_samples: SampleList,
        reference: Tensor | None = None,  # [L, B, Q, 2 or 4]
        enc_outputs_class: Tensor | None = None,  # [B, S, classes]
        enc_outputs_coord: Tensor | None = None,  # [B, S, 4]
        groups: QueryGroups | None = None,
        cells: tuple[Tensor, Tensor] | None = None,  # [B, S, C], [B, S, 4]
    ) -> dict[str, Tensor]:
        """Losses of all decoder layers, of the encoder's proposals and of each group of queries where there are any.

        Args:
            cells: the encoder's memory as the branches see it, and what its boxes are relative to, before the sigmoid
                (infinite where no object can be), for ``dense_loss``.
        """
        logits, boxes = self(hidden, reference)
        return self.loss_by_feat(
            logits,
            boxes,
            enc_outputs_class,
            enc_outputs_coord,
            [sample.gt_instances for sample in batch_data_samples],
            [sample.metainfo for sample in batch_data_samples],
            groups,
            cells,
        )

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,  # [L, B, Q, classes]
        all_layers_bbox_preds: Tensor,  # [L, B, Q, 4]
        enc_cls_scores: Tensor | None,  # [B, S, classes]
        enc_bbox_preds: Tensor | None,  # [B, S, 4]
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        groups: QueryGroups | None = None,
        cells: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Match and compute the losses, in fp32 whatever autocast is doing.

        Args:
            groups: the kinds of queries among the Q; None: all of them are matched one-to-one.
            cells: as of ``loss``.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_iou`` of the last layer, ``d{i}.*`` of layer i; ``enc_*`` of the
            encoder, ``dense_*`` of its cells; ``one2many_*``, ``d{i}.one2many_*``, ``dn_*`` and ``d{i}.dn_*`` of those
            queries.
        """
        check_labels(batch_gt_instances, batch_img_metas, self.num_classes)
        targets = self.collect_targets(batch_gt_instances, batch_img_metas)
        return self.loss_and_match(
            all_layers_cls_scores, all_layers_bbox_preds, enc_cls_scores, enc_bbox_preds, targets, groups, cells
        )[0]

    def loss_and_match(
        self,
        all_layers_cls_scores: Tensor,  # [L, B, Q, classes]
        all_layers_bbox_preds: Tensor,  # [L, B, Q, 4]
        enc_cls_scores: Tensor | None,  # [B, S, classes]
        enc_bbox_preds: Tensor | None,  # [B, S, 4]
        targets: Targets,
        groups: QueryGroups | None = None,
        cells: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Match]:
        """The losses of ``loss_by_feat``, and which queries of the last layer were matched one-to-one."""
        groups = groups or QueryGroups(matching=all_layers_cls_scores.shape[2])
        with torch.autocast(all_layers_cls_scores.device.type, enabled=False):
            matching, one2many, denoising = zip(
                groups.split(all_layers_cls_scores.float(), 2), groups.split(all_layers_bbox_preds.float(), 2)
            )
            to_match = {'': (matching, targets)}
            if enc_cls_scores is not None:
                objects = targets
                if not self.classifies_proposals:
                    # The encoder tells object from background only: every target is of class 0 (official code).
                    objects = replace(targets, labels=torch.zeros_like(targets.labels))
                to_match['enc_'] = ((enc_cls_scores.float()[None], enc_bbox_preds.float()[None]), objects)
            if groups.k_one2many:
                to_match['one2many_'] = (one2many, targets.repeat(groups.k_one2many))
            matches = self.assigner.match(
                [(logits.detach(), boxes.detach()) for (logits, boxes), _ in to_match.values()],
                [t for _, t in to_match.values()],
            )
            terms = {name: self._set_loss(*p, m, t) for (name, (p, t)), m in zip(to_match.items(), matches)}
            if groups.k_one2many:
                terms['one2many_'] = {k: v * groups.lambda_one2many for k, v in terms['one2many_'].items()}
            if groups.dn_groups:
                taught = groups.dn_targets or targets
                match = self.denoising_match(groups, taught, len(matching[0]))
                with_loss = groups.dn_with_loss(taught.counts, denoising[0].device)
                terms['dn_'] = self._set_loss(*denoising, match, taught, with_loss)
            if cells is not None:
                terms['dense_'] = self._dense_loss(*cells, targets)

        losses = {}
        for prefix, values_of_layers in terms.items():
            losses.update({f'{prefix}{name}': values[-1] for name, values in values_of_layers.items()})
            for layer in range(len(values_of_layers['loss_cls']) - 1):
                losses.update({f'd{layer}.{prefix}{name}': v[layer] for name, v in values_of_layers.items()})
        return losses, matches[0].last_layer

    def _dense_loss(
        self,
        features: Tensor,  # [B, S, C]
        places: Tensor,  # [B, S, 4] before the sigmoid, infinite where no object can be
        targets: Targets,
    ) -> dict[str, Tensor]:
        """Losses of the encoder's cells, each told one object at most, an object told to several."""
        options = dict(self.dense_loss)
        weight = options.pop('loss_weight', 1.0)
        logits = self.cls_branches[-1](features).float()
        boxes = self.boxes_of_cells(-1, features, places)
        usable = places.isfinite().all(-1)
        match = task_aligned_match(logits, boxes, places[..., :2].sigmoid(), usable, targets, **options)
        losses = self._set_loss(logits[None], boxes[None], match, targets)
        return {name: weight * loss for name, loss in losses.items()}

    @staticmethod
    def denoising_match(groups: QueryGroups, targets: Targets, num_layers: int) -> Match:
        """Denoising queries need no matching: the positive one of each target in each group is known."""
        L, G, T = num_layers, groups.dn_groups, len(targets.labels)
        device = targets.labels.device
        first = torch.arange(G, device=device)[:, None] * groups.dn_size
        rows = [
            torch.arange(L, device=device)[:, None, None],
            targets.image,
            first + targets.index_in_image,
            torch.arange(T, device=device),
        ]
        layer, image, query, target = (row.expand(L, G, T).flatten() for row in rows)
        return Match(layer, image, query, target, per_layer=G * T)

    @staticmethod
    def collect_targets(batch_gt_instances: InstanceList, batch_img_metas: list[dict]) -> Targets:
        """Concatenate the batch's ground truth; boxes in pixel corners become normalised (cx, cy, w, h)."""
        counts = [len(gt) for gt in batch_gt_instances]
        # a box type of mmdet's, or a plain tensor
        boxes = torch.cat([getattr(gt.bboxes, 'tensor', gt.bboxes).float() for gt in batch_gt_instances])
        labels = torch.cat([gt.labels for gt in batch_gt_instances])
        image = torch.cat([labels.new_full((count,), i) for i, count in enumerate(counts)])
        sizes = _image_sizes(batch_img_metas, boxes)
        return Targets(bbox_xyxy_to_cxcywh(boxes / sizes[image]), labels, image, counts, sizes)

    def _set_loss(
        self,
        logits: Tensor,  # [L, B, Q, classes]
        boxes: Tensor,  # [L, B, Q, 4]
        match: Match,
        targets: Targets,
        with_loss: Tensor | None = None,  # [B, Q], queries that have a loss of their class; None: all
    ) -> dict[str, Tensor]:
        """Losses per layer of one set of predictions, each a tensor [L]."""
        L, B, Q, _ = logits.shape
        matched = (match.layer, match.image, match.query)
        target_boxes = targets.boxes[match.target]

        labels = match.target.new_full((L, B, Q), self.num_classes)
        labels[matched] = targets.labels[match.target]
        num_pos = match.per_layer
        cls_factor = self._average(num_pos + (B * Q - num_pos) * self.bg_cls_weight, self.sync_cls_avg_factor, logits)
        box_factor = self._average(num_pos, True, logits)

        def quality():
            iou = box_quality(boxes[matched], target_boxes)
            return iou.new_zeros(L, B, Q).index_put(matched, iou).flatten()

        loss_cls = class_loss(self.loss_cls, logits.flatten(0, 2), labels.flatten(), quality)
        if with_loss is not None:
            without = ~with_loss.flatten().repeat(L)
            loss_cls = loss_cls.masked_fill(without if loss_cls.dim() == 1 else without[:, None], 0.0)
        losses = dict(loss_cls=loss_cls.view(L, -1).sum(1) / cls_factor)
        if num_pos == 0:  # no boxes: zero, but still part of the graph, so that every rank has every gradient
            zero = boxes.flatten(1).sum(1) * 0
            return dict(losses, loss_bbox=zero, loss_iou=zero)
        pred = boxes[matched]
        size = targets.sizes[match.image]
        loss_bbox = self.loss_bbox(pred, target_boxes, reduction_override='none')
        loss_iou = self.loss_iou(  # in pixels: the loss's eps is meant for them
            bbox_cxcywh_to_xyxy(pred) * size, bbox_cxcywh_to_xyxy(target_boxes) * size, reduction_override='none'
        )
        losses['loss_bbox'] = loss_bbox.reshape(L, -1).sum(1) / box_factor
        losses['loss_iou'] = loss_iou.reshape(L, -1).sum(1) / box_factor
        return losses

    @staticmethod
    def _average(count: float, sync: bool, like: Tensor) -> Tensor:
        """``max(count averaged over the ranks, 1)``, without a host sync."""
        count = like.new_full((), count)
        return (reduce_mean(count) if sync else count).clamp(min=1)

    # ------------------------------------------------------------- predict

    def predict(
        self,
        hidden: Tensor,  # [L, B, Q, C]
        batch_data_samples: SampleList,
        reference: Tensor | None = None,  # [L, B, Q, 2 or 4]
        rescale: bool = True,
        **kwargs,
    ) -> InstanceList:
        """Detections of the last layer, boxes in pixels of the original image if ``rescale``."""
        outputs = self(hidden[-1:], None if reference is None else reference[-1:])
        return self.predict_by_feat(*outputs, [sample.metainfo for sample in batch_data_samples], rescale)

    def predict_by_feat(
        self,
        all_layers_cls_scores: Tensor,  # [L, B, Q, classes]
        all_layers_bbox_preds: Tensor,  # [L, B, Q, 4]
        batch_img_metas: list[dict],
        rescale: bool = True,
    ) -> InstanceList:
        """Top-scoring (query, class) pairs of each image (sigmoid), or queries with their best class (softmax).

        Returns:
            per image ``scores`` [N], ``labels`` [N], ``bboxes`` [N, 4] in (x1, y1, x2, y2), clamped to the image, and
            ``query`` [N] that each comes from, sorted by score; N = min(max_per_img, candidates).
        """
        sizes = _image_sizes(batch_img_metas, all_layers_bbox_preds)  # [B, 4]
        boxes, *others = self.best(all_layers_cls_scores[-1], all_layers_bbox_preds[-1], sizes)
        if rescale:
            # a pipeline without Resize tells no factor: the image's own pixels are the original's
            factors = [tuple(meta.get('scale_factor', (1.0, 1.0))) for meta in batch_img_metas]
            scales = torch.tensor([[*factor, *factor] for factor in factors])
            boxes = boxes / scales[:, None].to(boxes, non_blocking=True)
        return [InstanceData(bboxes=b, scores=s, labels=c, query=q) for b, s, c, q in zip(boxes, *others)]

    def best(
        self,
        logits: Tensor,  # [B, Q, classes]
        boxes: Tensor,  # [B, Q, 4], (cx, cy, w, h) in [0, 1]
        sizes: Tensor,  # [B, 4], (w, h, w, h) of the unpadded images
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The detections of :meth:`predict_by_feat` in tensors: boxes [B, N, 4], scores, labels and queries [B, N]."""
        logits, boxes = logits.float(), boxes.float()
        Q = logits.shape[1]
        max_per_img = self.test_cfg.get('max_per_img', Q)
        if self.loss_cls.use_sigmoid:
            scores = logits.sigmoid().flatten(1)  # [B, Q*C]
            scores, index = scores.topk(min(max_per_img, scores.shape[1]))
            labels, query = index % self.num_classes, index // self.num_classes
        else:
            scores, best = logits.softmax(-1)[..., :-1].max(-1)
            scores, query = scores.topk(min(max_per_img, Q))
            labels = best.gather(1, query)
        boxes = bbox_cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4)))  # [B, N, 4]
        if self.test_cfg.get('matrix_nms') is not None:
            scores, order = matrix_nms(boxes, scores, labels, self.test_cfg['matrix_nms']).topk(scores.shape[1])
            labels, query = labels.gather(1, order), query.gather(1, order)
            boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        sizes = sizes[:, None].to(boxes.dtype)
        return (boxes * sizes).clamp(min=boxes.new_zeros(()), max=sizes), scores, labels, query


def _image_sizes(batch_img_metas: list[dict], like: Tensor) -> Tensor:  # [B, 4]
    """(w, h, w, h) of the unpadded images, in the dtype and on the device of ``like``, without a sync."""
    sizes = torch.tensor([[w, h, w, h] for h, w in (meta['img_shape'][:2] for meta in batch_img_metas)])
    return sizes.to(like, non_blocking=True)
