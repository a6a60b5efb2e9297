"""Queries that are boxes (DAB-DETR, Liu et al., ICLR 2022, arXiv:2201.12329)."""

from torch import Tensor, nn

from mmdet_ddetr.layers import FixedCentres, at_every_place


class BoxQueries:
    """What any detector of the family can have: each query is a learned box, which its decoder starts from.

    Denoising queries are boxes, too, so that ``dn_cfg`` makes a DN-DETR of such a detector.

    Args:
        num_patterns: learned contents that each box is tried with, so that there are as many times ``num_queries``; 0:
            one query a box.
        with_random_refpoints: the boxes' centres are drawn uniformly, once, and are not trained ("fix x-y").
        **kwargs: as of the detector.
    """

    starts_from_boxes = takes_indicator = True
    query_dim = 4  # (cx, cy, w, h); 2: (cx, cy)

    def __init__(self, *args, num_patterns: int = 0, with_random_refpoints: bool = False, **kwargs):
        if isinstance(num_patterns, bool) or not isinstance(num_patterns, int) or num_patterns < 0:
            raise ValueError(f'num_patterns must be a number of contents, or 0 for none, got {num_patterns!r}')
        if num_patterns > 1 and kwargs.get('num_queries_one2many'):
            raise ValueError(
                f'num_queries_one2many must be 0 with num_patterns={num_patterns}: patterns multiply the queries'
            )
        self.num_patterns = num_patterns
        self.with_random_refpoints = with_random_refpoints
        super().__init__(*args, **kwargs)

    def _init_queries(self) -> None:
        embedding = FixedCentres if self.with_random_refpoints else nn.Embedding
        self.query_embedding = embedding(self.num_learned_queries, self.query_dim)  # before the sigmoid
        if self.num_patterns:
            self.patterns = nn.Embedding(self.num_patterns, self.embed_dims)

    def learned_queries(self, batch_size: int) -> dict[str, Tensor]:
        """Contents and first references, [B, Q, n] each, the same for every image."""
        boxes = self.query_embedding.weight[: self.num_decoder_queries].float().sigmoid()
        content = self.contents_of(boxes)
        if self.num_patterns:
            patterns, boxes = at_every_place(self.patterns.weight, boxes)
            content = patterns + content.repeat(self.num_patterns, 1)
        return {name: x.expand(batch_size, -1, -1) for name, x in self.queries_of_boxes(content, boxes).items()}

    def contents_of(self, boxes: Tensor) -> Tensor:  # [Q, 2 or 4] -> [Q, C]
        """What learned boxes look for at first: nothing, or what denoising queries without a label would."""
        if self.has_indicator:
            return self.dn_query_generator.content_without_label().expand(len(boxes), -1)
        return boxes.new_zeros(len(boxes), self.embed_dims)

    def queries_of_boxes(self, content: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """[B, Q, C], [B, Q, 4] -> the decoder's inputs of queries that start from boxes."""
        return dict(query=content, reference_points=boxes[..., : self.query_dim])
