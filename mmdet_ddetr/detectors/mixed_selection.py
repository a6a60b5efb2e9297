"""Mixed query selection (DINO, arXiv:2203.03605, section 3.4)."""

from torch import Tensor, nn


class MixedSelection:
    """What any two-stage detector can have: proposals tell where its queries start, not what they look for.

    Args:
        mixed_selection: the contents of queries that start from proposals are learned (docs/beyond_the_paper.md).
        **kwargs: as of the detector.
    """

    def __init__(self, *args, mixed_selection: bool = False, **kwargs):
        if mixed_selection and not self.as_two_stage:
            raise ValueError('mixed_selection needs as_two_stage=True: its queries start from proposals')
        self.mixed_selection = mixed_selection
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
