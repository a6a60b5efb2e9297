"""What the queries of a two-stage detector take from its proposals (DINO, arXiv:2203.03605, section 3.4)."""

from torch import Tensor, nn


class QuerySelection:
    """What any two-stage detector can have: where its queries' contents come from (docs/beyond_the_paper.md).

    Args:
        mixed_selection: proposals tell where the queries start, not what they look for: their contents are learned.
        pure_selection: the contents are the proposals' features, as in Efficient DETR (arXiv:2104.01318) and RT-DETR.
        **kwargs: as of the detector.
    """

    def __init__(self, *args, mixed_selection: bool = False, pure_selection: bool = False, **kwargs):
        if mixed_selection and pure_selection:
            raise ValueError('mixed_selection and pure_selection exclude each other, got True for both')
        for name, on in dict(mixed_selection=mixed_selection, pure_selection=pure_selection).items():
            if on and not self.as_two_stage:
                raise ValueError(f'{name} needs as_two_stage=True: its queries start from proposals')
        self.mixed_selection = mixed_selection
        self.pure_selection = pure_selection
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.mixed_selection:
            self.query_embedding = nn.Embedding(self.num_learned_queries, self.embed_dims)  # content

    def select_contents(self, queries: dict[str, Tensor]) -> dict[str, Tensor]:
        """``queries``, which start from proposals, with the contents [B, Q, C] that they are to have."""
        if not self.mixed_selection:
            return queries
        content = self.query_embedding.weight[: queries['query'].shape[1]]
        return dict(queries, query=content.expand_as(queries['query']))
