"""DAB-DETR (Liu et al., ICLR 2022, arXiv:2201.12329)."""

from mmdet_ddetr.layers import DABDecoder, DABEncoder
from mmdet_ddetr.registry import MODELS

from .box_queries import BoxQueries
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
