"""Queries that a detector trains with beside its own: denoising (DN-DETR, DINO) and one-to-many queries (H-DETR)."""

from dataclasses import replace

import torch
from mmdet.structures import SampleList
from torch import Tensor

from mmdet_ddetr.heads import check_labels
from mmdet_ddetr.layers import DenoisingQueries, QueryGroups
from mmdet_ddetr.layers.transformer import build


class TrainingQueries:
    """What any detector of the family can train with; a prediction does without them (docs/beyond_the_paper.md).

    A detector gives ``num_learned_queries`` vectors to its queries, starts ``num_decoder_queries`` of them, and says in
    ``queries_of_boxes`` how a query starts from a box, if it can.

    Args:
        dn_cfg: arguments of ``DenoisingQueries``, mmdet's ``dn_cfg``. None: no denoising. With its ``indicator``, the
            detector's own queries have one, too, also in a prediction.
        num_queries_one2many: queries that are matched with ``k_one2many`` copies of each target, in training only;
            their losses weigh ``lambda_one2many`` (H-DETR, arXiv:2207.13080).
    """

    def __init__(
        self,
        *args,
        dn_cfg: dict | None = None,
        num_queries_one2many: int = 0,
        k_one2many: int = 6,
        lambda_one2many: float = 1.0,
        **kwargs,
    ):
        self.num_queries_one2many = num_queries_one2many
        self.k_one2many = k_one2many if num_queries_one2many else 0
        self.lambda_one2many = lambda_one2many
        if dn_cfg is not None and not self.starts_from_boxes:
            raise ValueError(
                f'dn_cfg must be None: the queries of {type(self).__name__} do not start from boxes'
                f'{self.how_to_start_from_boxes}'
            )
        self.has_indicator = bool((dn_cfg or {}).get('indicator'))
        if self.has_indicator and not self.takes_indicator:
            raise ValueError(f'dn_cfg.indicator must be False: the queries of {type(self).__name__} have none')
        super().__init__(*args, **kwargs)
        self.dn_query_generator = None
        if dn_cfg is not None:
            config = dict(num_classes=self.bbox_head.num_classes, embed_dims=self.embed_dims, **dn_cfg)
            self.dn_query_generator = build(config, DenoisingQueries)

    starts_from_boxes = False
    takes_indicator = False  # whether the detector's queries have a channel for ``DenoisingQueries``' indicator
    how_to_start_from_boxes = ''  # what the error adds

    @property
    def num_learned_queries(self) -> int:
        return self.num_queries + self.num_queries_one2many

    @property
    def num_decoder_queries(self) -> int:
        """Queries that start now, without denoising ones; proposals may be fewer."""
        return self.num_learned_queries if self.training else self.num_queries

    def queries_of_boxes(
        self,
        content: Tensor,  # [B, Q, C]
        boxes: Tensor,  # [B, Q, 4] (cx, cy, w, h) in [0, 1]
    ) -> dict[str, Tensor]:
        """The decoder's inputs, [B, Q, n] each, of queries that start from boxes."""
        raise NotImplementedError

    def add_training_queries(self, decoder_inputs: dict, batch_data_samples: SampleList) -> QueryGroups | None:
        """Append denoising queries to those in ``decoder_inputs``, and add the mask that keeps the kinds apart.

        Returns:
            how many there are of each kind; None where all queries are the detector's own.
        """
        if not self.num_queries_one2many and self.dn_query_generator is None:
            return None
        query = decoder_inputs['query']
        total = query.shape[1]
        matching = min(self.num_queries, total) if self.num_queries_one2many else total
        groups = QueryGroups(matching, total - matching, self.k_one2many, self.lambda_one2many)
        if self.dn_query_generator is not None:
            truth = [sample.gt_instances for sample in batch_data_samples]
            metas = [sample.metainfo for sample in batch_data_samples]
            check_labels(truth, metas, self.bbox_head.num_classes)
            targets = self.bbox_head.collect_targets(truth, metas)
            chosen = self.dn_query_generator.choose(targets)
            content, boxes, dn_groups = self.dn_query_generator(chosen)
            for name, noisy in self.queries_of_boxes(content.to(query.dtype), boxes).items():
                decoder_inputs[name] = torch.cat([decoder_inputs[name], noisy.to(decoder_inputs[name].dtype)], 1)
            groups = replace(
                groups,
                dn_groups=dn_groups,
                dn_size=content.shape[1] // dn_groups,
                dn_learns_of_empty=self.dn_query_generator.contrastive,
                dn_targets=None if chosen is targets else chosen,
            )
        decoder_inputs['self_attn_mask'] = groups.attention_mask(query.device)
        return groups
