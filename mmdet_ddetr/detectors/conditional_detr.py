"""Conditional DETR (Meng et al., ICCV 2021, arXiv:2108.06152)."""

from mmdet_ddetr.layers import ConditionalDecoder
from mmdet_ddetr.registry import MODELS

from .detr import DETR


@MODELS.register_module()
class ConditionalDETR(DETR):
    """DETR whose queries look for positions and for contents apart, so that it trains in a tenth of the epochs.

    Takes mmdet's ``ConditionalDETR`` config and state_dict.

    Args:
        As ``DETR``'s.
    """

    decoder_type = ConditionalDecoder
    wh_bias = 0.0
