"""DAB-DETR (Liu et al., ICLR 2022, arXiv:2201.12329)."""

from torch import Tensor, nn

from mmdet_ddetr.layers import DABDecoder, DABDeformableDecoder, DABEncoder, with_indicator
from mmdet_ddetr.registry import MODELS

from .box_queries import BoxQueries
from .deformable_detr import DeformableDETR
from .detr import DETR


@MODELS.register_module()
class DABDETR(BoxQueries, DETR):
    """DETR whose queries are boxes that every layer refines; cross-attention looks where the box is, as far as it goes.

    Takes mmdet's ``DABDETR`` config and state_dict.

    Args:
        As ``BoxQueries``' and ``DETR``'s.
    """

    encoder_type = DABEncoder
    decoder_type = DABDecoder
    refines_boxes = True
    wh_bias = 0.0
    reference_eps = 1e-3

    @property
    def query_dim(self) -> int:
        return self.decoder.query_dim


@MODELS.register_module()
class DABDeformableDETR(BoxQueries, DeformableDETR):
    """Deformable DETR whose queries are boxes, with learned contents.

    Two-stage, its queries start from proposals as in detrex: an encoder that tells classes chooses them, and their
    contents are the encoder's memory. (The official code's two-stage variant does not run.)

    Args:
        with_box_refine, as_two_stage, ...: as ``DeformableDETR``'s; each layer refines the boxes of the one before.
        num_patterns, with_random_refpoints: as ``BoxQueries``', for queries that are learned.
    """

    decoder_type = DABDeformableDecoder
    reference_eps = 1e-3

    def __init__(self, *args, bbox_head: dict, with_box_refine: bool = True, as_two_stage: bool = False, **kwargs):
        learned = [name for name in ('num_patterns', 'with_random_refpoints') if kwargs.get(name)]
        if as_two_stage and learned:
            raise ValueError(f'{learned[0]} must not be set with as_two_stage=True: no query starts from a learned box')
        self.takes_indicator = not as_two_stage
        super().__init__(
            *args,
            bbox_head={'classifies_proposals': as_two_stage, **bbox_head},
            with_box_refine=with_box_refine,
            as_two_stage=as_two_stage,
            **kwargs,
        )

    def _init_queries(self) -> None:
        if not self.as_two_stage:
            super()._init_queries()
            self.content_embedding = nn.Embedding(self.num_learned_queries, self.embed_dims - self.has_indicator)

    def contents_of(self, boxes: Tensor) -> Tensor:  # [Q, 4] -> [Q, C]
        content = self.content_embedding.weight[: len(boxes)]
        return with_indicator(content, denoising=False) if self.has_indicator else content

    def queries_of_proposals(self, features: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        return self.queries_of_boxes(features, boxes)
