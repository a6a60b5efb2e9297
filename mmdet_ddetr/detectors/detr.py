"""DETR (Carion et al., ECCV 2020, arXiv:2005.12872)."""

import torch
from mmdet.structures import OptSampleList
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS

from .base import BaseDETR


@MODELS.register_module()
class DETR(BaseDETR):
    """A transformer over one feature map; each learned object query finds one object or none.

    Takes mmdet's ``DETR`` config and state_dict.

    Evaluate models with a dilated backbone (DC5) with one image a GPU: they were trained so, and their AP drops
    significantly with more (official README).

    Args:
        As ``BaseDETR``'s; the neck gives one feature map.
    """

    wh_bias: float | None = None  # the head's, where its config says nothing: boxes without a reference

    def __init__(self, *args, bbox_head: dict, **kwargs):
        super().__init__(*args, bbox_head={'wh_bias': self.wh_bias, **bbox_head}, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self._init_queries()

    def _init_queries(self) -> None:
        self.query_embedding = nn.Embedding(self.num_learned_queries, self.embed_dims)

    def init_own_weights(self) -> None:
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],  # one [B, C, H, W]
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict, dict]:
        """Flatten the feature map and describe it: mask, positions, shape.

        Args:
            batch_data_samples: their ``img_shape`` and ``batch_input_shape`` tell the padding; None: no padding.
        """
        if len(mlvl_feats) != 1:
            raise ValueError(
                f'the neck gives {len(mlvl_feats)} feature maps, {type(self).__name__} reads one: set neck.num_outs=1'
            )
        spatial_shapes, _, (feat,), (mask,), (position,) = self.flatten_levels(mlvl_feats, batch_data_samples)
        encoder_inputs = dict(feat=feat, feat_mask=mask, feat_pos=position, spatial_shapes=spatial_shapes)
        return encoder_inputs, dict(memory_mask=mask, key_pos=position, spatial_shapes=spatial_shapes)

    def forward_encoder(
        self,
        feat: Tensor,  # [B, S, C]
        feat_mask: Tensor | None,  # [B, S], True = padding
        feat_pos: Tensor | None,  # [B, S, C]
        **inputs,
    ) -> dict:
        """``inputs`` go on to the layers' attentions."""
        return dict(memory=self.encoder(feat, query_pos=feat_pos, key_padding_mask=feat_mask, **inputs))

    def pre_decoder(self, memory: Tensor) -> tuple[dict, dict]:  # memory [B, S, C]
        return dict(self.learned_queries(memory.shape[0]), memory=memory), {}

    def learned_queries(self, batch_size: int) -> dict[str, Tensor]:
        """Positions without content, [B, Q, C] each, the same for every image."""
        query_pos = self.query_embedding.weight[: self.num_decoder_queries].expand(batch_size, -1, -1)
        return dict(query=torch.zeros_like(query_pos), query_pos=query_pos)
