"""SAM-DETR (Zhang et al., CVPR 2022, arXiv:2203.06883)."""

from mmdet.structures import OptSampleList
from torch import Tensor, nn

from mmdet_ddetr.layers import DeformableEncoder, DetrEncoder, SAMDecoder
from mmdet_ddetr.registry import MODELS

from .box_queries import BoxQueries
from .deformable_detr import DeformableDETR


@MODELS.register_module()
class SAMDETR(BoxQueries, DeformableDETR):
    """DETR that searches the map for features found in it, at salient points of each query's box.

    On one level, the encoder is DETR's. On several, it is Deformable DETR's, and each layer of the decoder reads one
    level, from the coarsest to the finest.

    Args:
        num_feature_levels: levels L that the neck gives.
        **kwargs: as ``BoxQueries``' and ``DeformableDETR``'s, but boxes are always refined, and queries are learned.
    """

    decoder_type = SAMDecoder

    def __init__(self, *args, bbox_head: dict, num_feature_levels: int = 1, **kwargs):
        if kwargs.get('as_two_stage') or not kwargs.setdefault('with_box_refine', True):
            raise ValueError(
                'as_two_stage must be False and with_box_refine True: SAMDETR refines boxes that it learns'
            )
        self.encoder_type = DetrEncoder if num_feature_levels == 1 else DeformableEncoder
        super().__init__(
            *args,
            bbox_head={'wh_bias': 0.0, **bbox_head},
            num_feature_levels=num_feature_levels,
            **kwargs,
        )

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.num_feature_levels == 1:
            self.level_embed = None

    def init_own_weights(self) -> None:
        super().init_own_weights()
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],  # [B, C, H, W] per level
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict, dict]:
        """As ``DeformableDETR.pre_transformer``; the decoder reads the positions of the pixels, too."""
        encoder_inputs, decoder_inputs = super().pre_transformer(mlvl_feats, batch_data_samples)
        return encoder_inputs, dict(decoder_inputs, key_pos=encoder_inputs['feat_pos'])
