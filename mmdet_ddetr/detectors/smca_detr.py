"""SMCA-DETR (Gao et al., ICCV 2021, arXiv:2101.07448)."""

import torch
from mmdet.structures import OptSampleList
from torch import Tensor, nn

from mmdet_ddetr.layers import (
    ConvEncoder,
    SMCADecoder,
    SpatiallyModulatedAttention,
    is_padded,
    joined_mask,
    own_sizes_in_cells,
    shapes_on_own_maps,
    sizes_in_cells,
)
from mmdet_ddetr.registry import MODELS

from .detr import DETR
from .levels import tie_levels


@MODELS.register_module()
class SMCADETR(DETR):
    """DETR whose queries look at Gaussians around points that they predict, so that it trains in a tenth of the epochs.

    With one level, the paper's single-scale model. With more, its multi-scale model (``encoder.type`` ``SMCAEncoder``)
    or the one of the released archive, which differs (``ConvEncoder``; configs/smca_detr/README.md).

    Args:
        num_feature_levels: levels L that the neck gives; the attentions' ``num_levels`` follows unless set.
        **kwargs: as ``DETR``'s. With ``own_maps``, the convolutions of ``ConvEncoder`` see no padding either.
    """

    decoder_type = SMCADecoder

    def __init__(self, *args, encoder: dict, decoder: dict, num_feature_levels: int = 1, **kwargs):
        self.num_feature_levels = num_feature_levels
        encoder = tie_levels(encoder, num_feature_levels, self.encoder_type)
        decoder = tie_levels(decoder, num_feature_levels, self.decoder_type)
        super().__init__(*args, encoder=encoder, decoder=decoder, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.num_feature_levels > 1:
            self.level_embed = nn.Parameter(torch.randn(self.num_feature_levels, self.embed_dims))

    def init_own_weights(self) -> None:
        super().init_own_weights()
        for module in self.decoder.modules():
            if isinstance(module, SpatiallyModulatedAttention):
                module.init_weights()
        if isinstance(self.encoder, ConvEncoder):
            self.encoder.downsample.reset_parameters()

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],  # [B, C, H, W] per level
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict, dict]:
        """Flatten the levels and describe them: mask, positions, shapes, sizes of the images.

        Args:
            batch_data_samples: their ``img_shape`` and ``batch_input_shape`` tell the padding; None: no padding.
        """
        spatial_shapes, _, feats, masks, positions = self.flatten_levels(mlvl_feats, batch_data_samples)
        own_shapes = None
        if self.own_maps and isinstance(self.encoder, ConvEncoder) and is_padded(batch_data_samples):
            own_shapes = shapes_on_own_maps(spatial_shapes, batch_data_samples)
        encoder_inputs = dict(
            feat=torch.cat(feats, 1),
            feat_mask=joined_mask(masks),
            feat_pos=torch.cat(positions, 1),
            spatial_shapes=spatial_shapes,
            own_shapes=own_shapes,
        )
        levels = self.encoder.memory_levels(self.num_feature_levels)
        memory_shapes = [spatial_shapes[level] for level in levels]
        sizes_of = own_sizes_in_cells if self.own_maps else sizes_in_cells
        decoder_inputs = dict(
            memory_mask=joined_mask([masks[level] for level in levels]),
            key_pos=torch.cat([positions[level] for level in levels], 1),
            spatial_shapes=memory_shapes,
            map_sizes=sizes_of(memory_shapes, batch_data_samples, feats[0].device),
        )
        return encoder_inputs, decoder_inputs
