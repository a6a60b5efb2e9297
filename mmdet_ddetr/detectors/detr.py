"""DETR (Carion et al., ECCV 2020, arXiv:2005.12872)."""

import copy

import torch
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.structures import OptSampleList
from torch import Tensor, nn

from mmdet_ddetr.heads import LabelGuard
from mmdet_ddetr.layers import DetrDecoder, DetrEncoder, padding_masks
from mmdet_ddetr.layers.transformer import build
from mmdet_ddetr.registry import MODELS


@MODELS.register_module()
class DETR(DetectionTransformer):
    """A transformer over one feature map; each learned object query finds one object or none.

    Takes mmdet's ``DETR`` config and state_dict; encoder, decoder, their layers and attentions can each be swapped by a
    ``type`` in their config. The config is not changed.

    Evaluate models with a dilated backbone (DC5) with one image a GPU: they were trained so, and their AP drops
    significantly with more (official README).

    Args:
        encoder, decoder, backbone, neck, ...: configs as in ``DetectionTransformer``; the neck gives one feature map.
        bbox_head: config of the head. Number of branches, their sharing and ``embed_dims`` follow from the detector.
    """

    def __init__(self, *args, encoder: dict, decoder: dict, bbox_head: dict, **kwargs):
        bbox_head = copy.deepcopy(bbox_head)
        bbox_head.setdefault('embed_dims', encoder['layer_cfg']['self_attn_cfg']['embed_dims'])
        bbox_head.setdefault('wh_bias', None)
        bbox_head.update(share_pred_layer=True, num_pred_layer=decoder['num_layers'])
        super().__init__(*args, encoder=encoder, decoder=decoder, bbox_head=bbox_head, **kwargs)

    def _init_layers(self) -> None:
        self.data_preprocessor.register_forward_pre_hook(LabelGuard(self.bbox_head.num_classes), with_kwargs=True)
        self.positional_encoding = MODELS.build({'type': 'mmdet.SinePositionalEncoding', **self.positional_encoding})
        self.encoder = build(self.encoder, DetrEncoder)
        self.decoder = build(self.decoder, DetrDecoder)
        self.embed_dims = self.encoder.embed_dims
        self.query_embedding = nn.Embedding(self.num_queries, self.embed_dims)

    def init_weights(self) -> None:
        """Official initialisation: Xavier in the transformer (``_reset_parameters``), PyTorch's own in the rest."""
        super().init_weights()
        if self.init_cfg:  # weights of the whole detector
            return
        for coder in (self.encoder, self.decoder):
            for parameter in coder.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],  # one [B, C, H, W]
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict, dict]:
        """Flatten the feature map and describe it: mask and positions.

        Args:
            batch_data_samples: their ``img_shape`` and ``batch_input_shape`` tell the padding; None: no padding.
        """
        if len(mlvl_feats) != 1:
            raise ValueError(f'the neck gives {len(mlvl_feats)} feature maps, DETR reads one')
        (feat,) = mlvl_feats
        (mask,) = padding_masks([tuple(feat.shape[-2:])], batch_data_samples, feat.device)
        position = self.positional_encoding(mask, input=feat)
        position = position.flatten(2).transpose(1, 2).to(feat.dtype)  # [B, H*W, C]
        mask = mask if mask is None else mask.flatten(1)  # [B, H*W]
        encoder_inputs = dict(feat=feat.flatten(2).transpose(1, 2), feat_mask=mask, feat_pos=position)
        return encoder_inputs, dict(memory_mask=mask, memory_pos=position)

    def forward_encoder(
        self,
        feat: Tensor,  # [B, S, C]
        feat_mask: Tensor | None,  # [B, S], True = padding
        feat_pos: Tensor,  # [B, S, C]
    ) -> dict:
        return dict(memory=self.encoder(feat, query_pos=feat_pos, key_padding_mask=feat_mask))

    def pre_decoder(self, memory: Tensor) -> tuple[dict, dict]:  # memory [B, S, C]
        query_pos = self.query_embedding.weight.expand(memory.shape[0], -1, -1)  # [B, Q, C]
        return dict(query=torch.zeros_like(query_pos), query_pos=query_pos, memory=memory), {}

    def forward_decoder(
        self,
        query: Tensor,  # [B, Q, C]
        query_pos: Tensor,  # [B, Q, C]
        memory: Tensor,  # [B, S, C]
        memory_mask: Tensor | None,  # [B, S], True = padding
        memory_pos: Tensor,  # [B, S, C]
    ) -> dict:
        hidden = self.decoder(
            query, query_pos=query_pos, value=memory, key_pos=memory_pos, key_padding_mask=memory_mask
        )
        return dict(hidden=hidden)
