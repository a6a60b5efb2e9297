"""Deformable DETR (Zhu et al., ICLR 2021, arXiv:2010.04159)."""

import torch
from mmdet.structures import OptSampleList
from mmengine.model import xavier_init
from torch import Tensor, nn

from mmdet_ddetr.layers import DeformableDecoder, DeformableEncoder, MSDeformAttn, joined_mask, sine_embedding
from mmdet_ddetr.registry import MODELS

from .base import BaseDETR
from .levels import tie_levels
from .query_selection import QuerySelection


@MODELS.register_module()
class DeformableDETR(QuerySelection, BaseDETR):
    """DETR with multi-scale deformable attention, iterative box refinement and a two-stage variant.

    Takes mmdet's ``DeformableDETR`` config and state_dict.

    Args:
        with_box_refine: each layer refines the boxes of the one before (section 4.2, appendix A.4).
        as_two_stage: the encoder proposes the decoder's first references.
        num_feature_levels: levels L that the neck gives; the attentions' ``num_levels`` follows unless set.
        proposals_on_padding: two-stage only; let queries start on the padding of a batch, as the official code and
            mmdet's do, so that an image's detections depend on its neighbours. By default none does.
        **kwargs: as ``QuerySelection``'s and ``BaseDETR``'s.
    """

    encoder_type = DeformableEncoder
    decoder_type = DeformableDecoder
    how_to_refine_boxes = ' without with_box_refine=True'
    how_to_start_from_boxes = ' without as_two_stage=True'
    gives_all_proposals = True  # to the head, whose losses read them; else those alone that the decoder starts from

    def __init__(
        self,
        *args,
        encoder: dict,
        decoder: dict,
        with_box_refine: bool = False,
        as_two_stage: bool = False,
        num_feature_levels: int = 4,
        proposals_on_padding: bool = False,
        **kwargs,
    ):
        self.with_box_refine = self.refines_boxes = with_box_refine
        self.shares_branches = not with_box_refine
        self.as_two_stage = as_two_stage
        self.starts_from_boxes = self.starts_from_boxes or as_two_stage
        self.num_feature_levels = num_feature_levels
        self.proposals_on_padding = proposals_on_padding
        encoder = tie_levels(encoder, num_feature_levels, self.encoder_type)
        decoder = tie_levels(decoder, num_feature_levels, self.decoder_type)
        super().__init__(*args, encoder=encoder, decoder=decoder, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        C = self.embed_dims
        self.level_embed = nn.Parameter(torch.randn(self.num_feature_levels, C))
        if self.as_two_stage:
            self.memory_trans_fc = nn.Linear(C, C)
            self.memory_trans_norm = nn.LayerNorm(C)
        self._init_queries()

    def _init_queries(self) -> None:
        C = self.embed_dims
        if self.as_two_stage:
            self.pos_trans_fc = nn.Linear(2 * C, 2 * C)
            self.pos_trans_norm = nn.LayerNorm(2 * C)
        else:
            self.query_embedding = nn.Embedding(self.num_learned_queries, 2 * C)  # position and content
            self.reference_points_fc = nn.Linear(C, 2)

    def init_own_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.init_weights()
        for linear in (getattr(self, name, None) for name in ('memory_trans_fc', 'pos_trans_fc')):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)
        if hasattr(self, 'reference_points_fc'):
            xavier_init(self.reference_points_fc, distribution='uniform', bias=0.0)

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],  # [B, C, H, W] per level
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict, dict]:
        """Flatten the levels and describe them: mask, positions, shapes, valid ratios.

        Args:
            batch_data_samples: their ``img_shape`` and ``batch_input_shape`` tell the padding; None: no padding.
        """
        spatial_shapes, masks, feats, flat_masks, positions = self.flatten_levels(mlvl_feats, batch_data_samples)
        feat_mask = joined_mask(flat_masks)  # [B, S]
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
        if not self.as_two_stage:
            return dict(self.learned_queries(memory.shape[0]), memory=memory), {}
        features, logits, places = self.propose(memory, memory_mask, spatial_shapes, valid_ratios)
        # Class 0 stands for "object" where the encoder's targets are all of class 0.
        scores = (logits.amax(-1) if self.bbox_head.classifies_proposals else logits[..., 0]).detach()  # [B, S]
        if memory_mask is not None and not self.proposals_on_padding:
            scores = scores.masked_fill(memory_mask, float('-inf'))
        best = scores.topk(min(self.num_decoder_queries, scores.shape[1]), dim=1)[1][..., None]  # [B, Q, 1]

        def of_best(x: Tensor) -> Tensor:  # [B, S, n] -> [B, Q, n]
            return x.gather(1, best.expand(-1, -1, x.shape[-1]))

        content = of_best(features)
        branch = self.decoder.num_layers
        if self.gives_all_proposals:
            boxes = self.bbox_head.boxes_of_cells(branch, features, places)
            chosen = of_best(boxes)
        else:
            boxes = chosen = self.bbox_head.boxes_of_cells(branch, content, of_best(places))
        queries = self.queries_of_proposals(content.detach(), chosen.detach())
        queries = self.select_contents(queries)
        if not self.gives_all_proposals or self.bbox_head.classifies_proposals:  # the losses are of those chosen
            logits, boxes = of_best(logits), chosen
        head_inputs = dict(enc_outputs_class=logits, enc_outputs_coord=boxes)
        if self.training and self.bbox_head.dense_loss is not None:
            head_inputs['cells'] = features, places
        return dict(queries, memory=memory), head_inputs

    def queries_of_proposals(self, features: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """The decoder's inputs of queries that start from proposals: their memory [B, Q, C] and boxes [B, Q, 4]."""
        return self.queries_of_boxes(features if self.pure_selection else None, boxes, features.dtype)

    def learned_queries(self, batch_size: int) -> dict[str, Tensor]:
        """Contents, positions and first references, [B, Q, n] each, the same for every image."""
        query_pos, query = (
            half.expand(batch_size, -1, -1) for half in halves(self.query_embedding.weight[: self.num_decoder_queries])
        )
        reference_points = self.reference_points_fc(query_pos).float().sigmoid()
        return dict(query=query, query_pos=query_pos, reference_points=reference_points)

    def propose(
        self,
        memory: Tensor,  # [B, S, C]
        memory_mask: Tensor | None,  # [B, S], True = padding
        spatial_shapes: list[tuple[int, int]],
        valid_ratios: Tensor,  # [B, L, 2]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder as a detector, one proposal per pixel.

        Returns:
            memory [B, S, C] as the encoder's branches see it, logits [B, S, classes], and what the boxes are relative
            to, [B, S, 4] before the sigmoid.
        """
        proposals, is_object_place = self.encoder_proposals(spatial_shapes, valid_ratios, memory_mask)
        memory_of_proposals = memory.masked_fill(~is_object_place, 0.0)
        memory_of_proposals = self.memory_trans_norm(self.memory_trans_fc(memory_of_proposals))
        logits = self.bbox_head.cls_branches[self.decoder.num_layers](memory_of_proposals)  # [B, S, classes]
        return memory_of_proposals, logits, proposals

    def queries_of_boxes(
        self,
        content: Tensor | None,  # [B, Q, C]; None: it follows from the box, too
        boxes: Tensor,  # [B, Q, 4] (cx, cy, w, h) in [0, 1]
        dtype: torch.dtype | None = None,  # of the queries, where there is no content
    ) -> dict[str, Tensor]:
        """Queries that start from boxes: from proposals (appendix A.4), or from ground truth with noise."""
        embedding = sine_embedding(boxes, self.embed_dims // 2).to(dtype or content.dtype)
        query_pos, query = halves(self.pos_trans_norm(self.pos_trans_fc(embedding)))
        return dict(query=query if content is None else content, query_pos=query_pos, reference_points=boxes)

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


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., 2C] as two of [..., C], each contiguous.

    As views, their stride would be 2C: what a batch of two has too, and torch.export would take the one for the other.
    """
    position, content = x.chunk(2, -1)
    return position.contiguous(), content.contiguous()
