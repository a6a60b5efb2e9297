"""Deformable DETR (Zhu et al., ICLR 2021, arXiv:2010.04159)."""

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.structures import OptSampleList, SampleList
from mmengine.model import xavier_init
from torch import Tensor, nn

from mmdet_ddetr.heads import LabelGuard, check_labels
from mmdet_ddetr.layers import (
    DeformableDecoder,
    DeformableEncoder,
    DenoisingQueries,
    MSDeformAttn,
    QueryGroups,
    is_padded,
    on_own_maps,
    padding_masks,
)
from mmdet_ddetr.layers.transformer import build
from mmdet_ddetr.ops import host_shapes
from mmdet_ddetr.registry import MODELS, class_of

ATTENTIONS = ('self_attn_cfg', 'cross_attn_cfg')


@MODELS.register_module()
class DeformableDETR(DetectionTransformer):
    """DETR with multi-scale deformable attention, iterative box refinement and a two-stage variant.

    Takes mmdet's ``DeformableDETR`` config and state_dict; encoder, decoder, their layers and attentions can each be
    swapped by a ``type`` in their config. The config is not changed.

    What later papers found is off by default: ``mixed_selection`` and what follows (docs/beyond_the_paper.md).

    Args:
        decoder: config of the decoder; ``encoder``, ``backbone``, ``neck``, ... as in ``DetectionTransformer``.
        bbox_head: config of the head. Number of branches, their sharing and ``embed_dims`` follow from the detector.
        with_box_refine: each layer refines the boxes of the one before (section 4.2, appendix A.4).
        as_two_stage: the encoder proposes the decoder's first references.
        num_feature_levels: levels L that the neck gives; the attentions' ``num_levels`` follows unless set.
        proposals_on_padding: two-stage only; let queries start on the padding of a batch, as the official code and
            mmdet's do, so that an image's detections depend on its neighbours. By default none does.
        own_maps: run the neck on each image's own part of a padded batch and count its cells as those of the image
            alone. By default the neck's norms see the padding, as in the official code and mmdet's.
        mixed_selection: two-stage only; proposals give the queries' positions, while their contents are learned
            (DINO, arXiv:2203.03605, section 3.4).
        look_forward_twice: with box refinement only; each layer learns from the boxes of the next, too (DINO, 3.5).
        dn_cfg: two-stage only; arguments of ``DenoisingQueries``, mmdet's ``dn_cfg``. None: no denoising.
        num_queries_one2many: queries that are matched with ``k_one2many`` copies of each target, in training only;
            their losses weigh ``lambda_one2many`` (H-DETR, arXiv:2207.13080).
    """

    def __init__(
        self,
        *args,
        decoder: dict,
        bbox_head: dict,
        encoder: dict,
        with_box_refine: bool = False,
        as_two_stage: bool = False,
        num_feature_levels: int = 4,
        proposals_on_padding: bool = False,
        own_maps: bool = False,
        mixed_selection: bool = False,
        look_forward_twice: bool = False,
        dn_cfg: dict | None = None,
        num_queries_one2many: int = 0,
        k_one2many: int = 6,
        lambda_one2many: float = 1.0,
        **kwargs,
    ):
        if not as_two_stage and (mixed_selection or dn_cfg is not None):
            raise ValueError('mixed_selection and dn_cfg need as_two_stage=True: their queries start from boxes')
        if look_forward_twice and not with_box_refine:
            raise ValueError('look_forward_twice needs with_box_refine=True: without it no box is refined')
        encoder, decoder, bbox_head = (copy.deepcopy(cfg) for cfg in (encoder, decoder, bbox_head))
        self.with_box_refine = with_box_refine
        self.as_two_stage = as_two_stage
        self.num_feature_levels = num_feature_levels
        self.proposals_on_padding = proposals_on_padding
        self.own_maps = own_maps
        self.mixed_selection = mixed_selection
        self.look_forward_twice = look_forward_twice
        self.dn_query_generator = dn_cfg
        self.num_queries_one2many = num_queries_one2many
        self.k_one2many = k_one2many if num_queries_one2many else 0
        self.lambda_one2many = lambda_one2many
        self._tie_levels(encoder, decoder)
        bbox_head.setdefault('embed_dims', encoder['layer_cfg']['self_attn_cfg'].get('embed_dims', 256))
        bbox_head.update(
            share_pred_layer=not with_box_refine,
            num_pred_layer=decoder['num_layers'] + as_two_stage,
            as_two_stage=as_two_stage,
        )
        super().__init__(*args, encoder=encoder, decoder=decoder, bbox_head=bbox_head, **kwargs)

    def _tie_levels(self, *stacks: dict) -> None:
        """Give every attention that asks for a number of levels the detector's, and refuse one that differs."""
        for stack in stacks:
            for name in ATTENTIONS:
                cfg = stack['layer_cfg'].get(name)
                is_dense = name == 'self_attn_cfg' and 'cross_attn_cfg' in stack['layer_cfg']
                if cfg is None or is_dense or 'num_levels' not in _arguments_of(cfg.get('type', MSDeformAttn)):
                    continue
                if cfg.setdefault('num_levels', self.num_feature_levels) != self.num_feature_levels:
                    raise ValueError(
                        f'{name}.num_levels must equal num_feature_levels={self.num_feature_levels}, '
                        f'got {cfg["num_levels"]}'
                    )

    def _init_layers(self) -> None:
        self.data_preprocessor.register_forward_pre_hook(LabelGuard(self.bbox_head.num_classes), with_kwargs=True)
        self.positional_encoding = MODELS.build({'type': 'mmdet.SinePositionalEncoding', **self.positional_encoding})
        self.encoder = build(self.encoder, DeformableEncoder)
        self.decoder = build(self.decoder, DeformableDecoder)
        self.embed_dims = C = self.encoder.embed_dims
        self.level_embed = nn.Parameter(torch.randn(self.num_feature_levels, C))
        num_queries = self.num_queries + self.num_queries_one2many
        if self.as_two_stage:
            self.memory_trans_fc = nn.Linear(C, C)
            self.memory_trans_norm = nn.LayerNorm(C)
            self.pos_trans_fc = nn.Linear(2 * C, 2 * C)
            self.pos_trans_norm = nn.LayerNorm(2 * C)
            if self.mixed_selection:
                self.query_embedding = nn.Embedding(num_queries, C)  # content
        else:
            self.query_embedding = nn.Embedding(num_queries, 2 * C)  # position and content
            self.reference_points_fc = nn.Linear(C, 2)
        if self.dn_query_generator is not None:
            config = dict(num_classes=self.bbox_head.num_classes, embed_dims=C, **self.dn_query_generator)
            self.dn_query_generator = build(config, DenoisingQueries)

    def init_weights(self) -> None:
        """Official initialisation (``deformable_transformer.py``, ``_reset_parameters``)."""
        super().init_weights()
        for coder in (self.encoder, self.decoder):
            for parameter in coder.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.init_weights()
        if self.as_two_stage:
            nn.init.xavier_uniform_(self.memory_trans_fc.weight)
            nn.init.xavier_uniform_(self.pos_trans_fc.weight)
        else:
            xavier_init(self.reference_points_fc, distribution='uniform', bias=0.0)

    # mmdet's template with the data samples given to ``extract_feat``, too

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        head_inputs = self._head_inputs(batch_inputs, batch_data_samples)
        return self.bbox_head.loss(**head_inputs, batch_data_samples=batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        head_inputs = self._head_inputs(batch_inputs, batch_data_samples)
        results = self.bbox_head.predict(**head_inputs, batch_data_samples=batch_data_samples, rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None) -> tuple[Tensor, Tensor]:
        return self.bbox_head(**self._head_inputs(batch_inputs, batch_data_samples))

    def _head_inputs(self, batch_inputs: Tensor, batch_data_samples: OptSampleList) -> dict:
        feats = self.extract_feat(batch_inputs, batch_data_samples)
        return self.forward_transformer(feats, batch_data_samples)

    def extract_feat(
        self,
        batch_inputs: Tensor,  # [B, 3, H, W]
        batch_data_samples: OptSampleList = None,
    ) -> tuple[Tensor, ...]:
        """The neck's maps [B, C, H, W] per level.

        Args:
            batch_data_samples: tell ``own_maps`` the padding; None: no padding.
        """
        if not self.own_maps or not is_padded(batch_data_samples):
            return super().extract_feat(batch_inputs)
        return on_own_maps(self.neck, self.backbone(batch_inputs), batch_data_samples)

    def forward_transformer(self, img_feats: tuple[Tensor, ...], batch_data_samples: OptSampleList = None) -> dict:
        """The steps of mmdet's ``DetectionTransformer``; in training, further queries join before the decoder."""
        encoder_inputs, decoder_inputs = self.pre_transformer(img_feats, batch_data_samples)
        queries, head_inputs = self.pre_decoder(**self.forward_encoder(**encoder_inputs))
        decoder_inputs.update(queries)
        if self.training and (self.num_queries_one2many or self.dn_query_generator is not None):
            head_inputs['groups'] = self.add_training_queries(decoder_inputs, batch_data_samples)
        return dict(head_inputs, **self.forward_decoder(**decoder_inputs))

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],  # [B, C, H, W] per level
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict, dict]:
        """Flatten the levels and describe them: mask, positions, shapes, valid ratios.

        Args:
            batch_data_samples: their ``img_shape`` and ``batch_input_shape`` tell the padding; None: no padding.
        """
        if len(mlvl_feats) != self.num_feature_levels:
            raise ValueError(
                f'the neck gives {len(mlvl_feats)} levels, num_feature_levels is {self.num_feature_levels}'
            )
        spatial_shapes = host_shapes([feat.shape[-2:] for feat in mlvl_feats])  # no device sync anywhere
        if torch.jit.is_tracing():  # shapes become constants: expand refuses maps of any other, also turned ones
            mlvl_feats = tuple(feat.expand(-1, -1, *shape) for feat, shape in zip(mlvl_feats, spatial_shapes))
        masks = padding_masks(spatial_shapes, batch_data_samples, mlvl_feats[0].device, self.own_maps)
        feats, positions, flat_masks = [], [], []
        for level, (feat, mask) in enumerate(zip(mlvl_feats, masks)):
            position = self.positional_encoding(mask, input=feat)
            feats.append(feat.flatten(2).transpose(1, 2))  # [B, H*W, C]
            positions.append(position.flatten(2).transpose(1, 2).to(feat.dtype) + self.level_embed[level])
            flat_masks.append(mask if mask is None else mask.flatten(1))
        feat_mask = None if masks[0] is None else torch.cat(flat_masks, 1)  # [B, S]
        geometry = dict(spatial_shapes=spatial_shapes, valid_ratios=self._valid_ratios(masks, mlvl_feats))
        encoder_inputs = dict(feat=torch.cat(feats, 1), feat_mask=feat_mask, feat_pos=torch.cat(positions, 1))
        return dict(encoder_inputs, **geometry), dict(memory_mask=feat_mask, **geometry)

    @staticmethod
    def _valid_ratios(masks: list[Tensor | None], mlvl_feats: tuple[Tensor, ...]) -> Tensor:
        """[B, L, 2] share of each map's width and height that is image."""
        if masks[0] is None:
            B = mlvl_feats[0].shape[0]  # not len(): torch.export would make it a constant
            return mlvl_feats[0].new_ones(B, len(mlvl_feats), 2, dtype=torch.float32)
        ratios = []
        for mask in masks:
            _, H, W = mask.shape
            ratios.append(torch.stack([(~mask[:, 0]).sum(1) / W, (~mask[:, :, 0]).sum(1) / H], -1))
        return torch.stack(ratios, 1)

    def forward_encoder(
        self,
        feat: Tensor,  # [B, S, C]
        feat_mask: Tensor | None,  # [B, S], True = padding
        feat_pos: Tensor,  # [B, S, C]
        spatial_shapes: list[tuple[int, int]],
        valid_ratios: Tensor,  # [B, L, 2]
    ) -> dict:
        memory = self.encoder(
            feat,
            query_pos=feat_pos,
            key_padding_mask=feat_mask,
            spatial_shapes=spatial_shapes,
            valid_ratios=valid_ratios,
        )
        return dict(memory=memory, memory_mask=feat_mask, spatial_shapes=spatial_shapes, valid_ratios=valid_ratios)

    def pre_decoder(
        self,
        memory: Tensor,  # [B, S, C]
        memory_mask: Tensor | None,  # [B, S], True = padding
        spatial_shapes: list[tuple[int, int]],
        valid_ratios: Tensor,  # [B, L, 2]
    ) -> tuple[dict, dict]:
        """Queries and their first references: learned, or the encoder's best proposals (two-stage)."""
        num_queries = self.num_queries + (self.num_queries_one2many if self.training else 0)
        if not self.as_two_stage:
            query_pos, query = (
                half.expand(memory.shape[0], -1, -1) for half in halves(self.query_embedding.weight[:num_queries])
            )
            reference_points = self.reference_points_fc(query_pos).float().sigmoid()
            return dict(query=query, query_pos=query_pos, memory=memory, reference_points=reference_points), {}

        proposals, is_object_place = self.encoder_proposals(spatial_shapes, valid_ratios, memory_mask)
        memory_of_proposals = memory.masked_fill(~is_object_place, 0.0)
        memory_of_proposals = self.memory_trans_norm(self.memory_trans_fc(memory_of_proposals))
        head, last = self.bbox_head, self.decoder.num_layers
        logits = head.cls_branches[last](memory_of_proposals)  # [B, S, classes]
        boxes_unact = head.reg_branches[last](memory_of_proposals).float() + proposals  # [B, S, 4]
        # Class 0 stands for "object": the encoder's targets are all of class 0.
        scores = logits[..., 0].detach()  # [B, S]
        if memory_mask is not None and not self.proposals_on_padding:
            scores = scores.masked_fill(memory_mask, float('-inf'))
        best = scores.topk(min(num_queries, scores.shape[1]), dim=1)[1]  # [B, Q]
        reference_points = boxes_unact.gather(1, best[..., None].expand(-1, -1, 4)).detach().sigmoid()
        query_pos, query = self.queries_of(reference_points, memory.dtype)
        if self.mixed_selection:
            query = self.query_embedding.weight[: query.shape[1]].expand_as(query)
        decoder_inputs = dict(query=query, query_pos=query_pos, memory=memory, reference_points=reference_points)
        return decoder_inputs, dict(enc_outputs_class=logits, enc_outputs_coord=boxes_unact.sigmoid())

    def queries_of(self, boxes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:  # boxes [B, Q, 4] in [0, 1]
        """Position and content [B, Q, C] of queries that start from boxes."""
        embedding = self.box_embedding(boxes, self.embed_dims // 2).to(dtype)
        return halves(self.pos_trans_norm(self.pos_trans_fc(embedding)))

    @staticmethod
    def encoder_proposals(
        spatial_shapes: list[tuple[int, int]],  # (H, W) per level
        valid_ratios: Tensor,  # [B, L, 2]
        memory_mask: Tensor | None,  # [B, S], True = padding
    ) -> tuple[Tensor, Tensor]:
        """One proposal per pixel: its centre, and a square of 5 % of the image, doubled per level (appendix A.4).

        Returns:
            proposals [B, S, 4] before the sigmoid (inf where unusable), and [B, S, 1], True where usable: not padding,
            and all four coordinates within (0.01, 0.99).
        """
        centres, sizes = [], []
        for level, (H, W) in enumerate(spatial_shapes):
            y, x = torch.meshgrid(
                torch.arange(H, dtype=torch.float32, device=valid_ratios.device) + 0.5,
                torch.arange(W, dtype=torch.float32, device=valid_ratios.device) + 0.5,
                indexing='ij',
            )
            ratio_x, ratio_y = valid_ratios[:, None, level].unbind(-1)  # [B, 1]
            valid_width, valid_height = (ratio_x * W).round(), (ratio_y * H).round()  # whole pixels
            centre = torch.stack([x.flatten() / valid_width, y.flatten() / valid_height], -1)  # [B, H*W, 2]
            centres.append(centre)
            sizes.append(torch.full_like(centre, 0.05 * 2.0**level))
        proposals = torch.cat([torch.cat(centres, 1), torch.cat(sizes, 1)], -1)
        usable = ((proposals > 0.01) & (proposals < 0.99)).all(-1, keepdim=True)
        if memory_mask is not None:
            usable = usable & ~memory_mask[..., None]
        return torch.log(proposals / (1 - proposals)).masked_fill(~usable, float('inf')), usable

    @staticmethod
    def box_embedding(
        boxes: Tensor,  # [B, Q, 4] in [0, 1]
        num_feats: int,
        temperature: float = 10000.0,
    ) -> Tensor:  # [B, Q, 4 * num_feats]
        """Sine embedding of each coordinate, in the order of the coordinates (official ``get_proposal_pos_embed``)."""
        index = torch.arange(num_feats, dtype=torch.float32, device=boxes.device)
        period = temperature ** (2 * torch.div(index, 2, rounding_mode='floor') / num_feats)
        phase = boxes[..., None] * 2 * math.pi / period  # [B, Q, 4, num_feats]
        return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], -1).flatten(2)

    def forward_decoder(
        self,
        query: Tensor,  # [B, Q, C]
        query_pos: Tensor,  # [B, Q, C]
        memory: Tensor,  # [B, S, C]
        memory_mask: Tensor | None,  # [B, S], True = padding
        reference_points: Tensor,  # [B, Q, 2 or 4]
        spatial_shapes: list[tuple[int, int]],
        valid_ratios: Tensor,  # [B, L, 2]
        self_attn_mask: Tensor | None = None,  # [Q, Q], True = not seen
    ) -> dict:
        hidden, reference = self.decoder(
            query,
            query_pos=query_pos,
            value=memory,
            key_padding_mask=memory_mask,
            reference_points=reference_points,
            spatial_shapes=spatial_shapes,
            valid_ratios=valid_ratios,
            refine=self.bbox_head.refine if self.with_box_refine else None,
            look_forward_twice=self.look_forward_twice,
            self_attn_mask=self_attn_mask,
        )
        return dict(hidden=hidden, reference=reference)

    # ------------------------------------------------ beyond the paper

    def add_training_queries(self, decoder_inputs: dict, batch_data_samples: SampleList) -> QueryGroups:
        """Append denoising queries to those in ``decoder_inputs``, and add the mask that keeps the kinds apart."""
        query = decoder_inputs['query']
        matching = min(self.num_queries, query.shape[1])  # there may be fewer proposals
        groups = QueryGroups(matching, query.shape[1] - matching, self.k_one2many, self.lambda_one2many)
        if self.dn_query_generator is not None:
            truth = [sample.gt_instances for sample in batch_data_samples]
            metas = [sample.metainfo for sample in batch_data_samples]
            check_labels(truth, metas, self.bbox_head.num_classes)
            targets = self.bbox_head.collect_targets(truth, metas)
            content, boxes, dn_groups = self.dn_query_generator(targets)
            position, _ = self.queries_of(boxes, query.dtype)
            for name, noisy in dict(query=content, query_pos=position, reference_points=boxes).items():
                decoder_inputs[name] = torch.cat([decoder_inputs[name], noisy.to(decoder_inputs[name].dtype)], 1)
            groups = replace(groups, dn_groups=dn_groups, dn_targets=max(targets.counts))
        decoder_inputs['self_attn_mask'] = groups.attention_mask(query.device)
        return groups


def _arguments_of(type_: str | type) -> Mapping[str, inspect.Parameter]:
    cls = class_of(type_, MODELS)
    return {} if cls is None else inspect.signature(cls).parameters  # where there is no such type, its building says so


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., 2C] as two of [..., C], each contiguous.

    As views, their stride would be 2C: what a batch of two has too, and torch.export would take the one for the other.
    """
    position, content = x.chunk(2, -1)
    return position.contiguous(), content.contiguous()
