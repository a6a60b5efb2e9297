"""What all detectors of the family share: backbone, neck, encoder, decoder, head, and the steps between them."""

import copy

import torch
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.structures import OptSampleList, SampleList
from mmdet.utils import InstanceList
from torch import Tensor, nn

from mmdet_ddetr.heads import LabelGuard
from mmdet_ddetr.layers import (
    DetrDecoder,
    DetrEncoder,
    ImageSizes,
    is_padded,
    on_own_maps,
    own_masks,
    padding_masks,
)
from mmdet_ddetr.layers.frozen_norm import replace_batch_norms
from mmdet_ddetr.layers.transformer import build
from mmdet_ddetr.ops import host_shapes
from mmdet_ddetr.registry import MODELS

from .training_queries import TrainingQueries


class BaseDETR(TrainingQueries, DetectionTransformer):
    """A DETR in mmdet's steps: ``pre_transformer``, ``forward_encoder``, ``pre_decoder``, ``forward_decoder``.

    A paper's detector overrides the steps that it changes. Encoder, decoder, their layers and attentions can each be
    swapped by a ``type`` in their config. The config is not changed.

    Args:
        encoder, decoder, backbone, neck, ...: configs as in ``DetectionTransformer``.
        bbox_head: config of the head. Number of branches, their sharing and ``embed_dims`` follow from the detector.
        own_maps: run the neck on each image's own part of a padded batch and count its cells as those of the image
            alone. By default the neck's norms see the padding, as in the official codes and mmdet's.
        **kwargs: as in ``TrainingQueries`` and ``DetectionTransformer``.
    """

    encoder_type: type = DetrEncoder  # where ``encoder`` has no ``type``
    decoder_type: type = DetrDecoder
    refines_boxes = False  # whether each layer's references are the boxes of the layer before
    shares_branches = True  # whether one class and one box branch serve all layers
    reference_eps = 1e-5  # the head's, where its config says nothing
    num_feature_levels = 1  # maps that the neck gives
    as_two_stage = False  # whether the encoder proposes boxes, with branches of its own

    def __init__(self, *args, encoder: dict, decoder: dict, bbox_head: dict, own_maps: bool = False, **kwargs):
        encoder, decoder, bbox_head = (copy.deepcopy(cfg) for cfg in (encoder, decoder, bbox_head))
        if decoder.get('look_forward_twice') and not self.refines_boxes:
            raise ValueError(
                f'decoder.look_forward_twice must be False: {type(self).__name__} refines no boxes'
                f'{self.how_to_refine_boxes}'
            )
        self.own_maps = own_maps
        bbox_head.setdefault('reference_eps', self.reference_eps)
        bbox_head.setdefault('embed_dims', encoder['layer_cfg']['self_attn_cfg'].get('embed_dims', 256))
        bbox_head.update(
            share_pred_layer=self.shares_branches,
            num_pred_layer=decoder['num_layers'] + self.as_two_stage,
            as_two_stage=self.as_two_stage,
        )
        super().__init__(*args, encoder=encoder, decoder=decoder, bbox_head=bbox_head, **kwargs)

    how_to_refine_boxes = ''  # what the error adds

    def _init_layers(self) -> None:
        replace_batch_norms(self.backbone)
        self.data_preprocessor.register_forward_pre_hook(LabelGuard(self.bbox_head.num_classes), with_kwargs=True)
        self.positional_encoding = MODELS.build({'type': 'mmdet.SinePositionalEncoding', **self.positional_encoding})
        self.encoder = build(self.encoder, self.encoder_type)
        self.decoder = build(self.decoder, self.decoder_type)
        self.embed_dims = self.encoder.embed_dims
        self._check()
        self.level_embed: nn.Parameter | None = None  # [L, C], tells the levels apart where there are several

    def _check(self) -> None:
        """Refuse parts that do not fit together."""
        if self.num_queries < 1:
            raise ValueError(f'num_queries must be at least 1, got {self.num_queries}')
        if isinstance(self.decoder, DetrDecoder) and not isinstance(self.decoder, self.decoder_type):
            raise ValueError(
                f'decoder.type must be {self.decoder_type.__name__}, or a class derived from it, in '
                f'{type(self).__name__}, got {type(self.decoder).__name__}'
            )
        for name, part in dict(decoder=self.decoder, bbox_head=self.bbox_head).items():
            if getattr(part, 'embed_dims', self.embed_dims) != self.embed_dims:
                raise ValueError(
                    f"embed_dims of the {name} must be the encoder's, {self.embed_dims}, got {part.embed_dims}"
                )
        channels = 2 * getattr(self.positional_encoding, 'num_feats', self.embed_dims / 2)
        if channels != self.embed_dims:
            raise ValueError(
                f'positional_encoding.num_feats must be half of embed_dims={self.embed_dims}, got {channels // 2}'
            )

    def init_weights(self) -> None:
        """Official initialisation: Xavier in the transformer (``_reset_parameters``), PyTorch's own in the rest."""
        super().init_weights()
        if self.init_cfg:  # weights of the whole detector
            return
        self.init_transformer()
        self.init_own_weights()

    def init_transformer(self) -> None:
        for coder in (self.encoder, self.decoder):
            for parameter in coder.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def init_own_weights(self) -> None:
        """What else the paper's code initialises in its own way."""

    # mmdet's template with the data samples given to ``extract_feat``, too

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        head_inputs = self._head_inputs(batch_inputs, batch_data_samples)
        return self.bbox_head.loss(**head_inputs, batch_data_samples=batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        results = self._detections(batch_inputs, batch_data_samples, rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _detections(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool) -> InstanceList:
        head_inputs = self._head_inputs(batch_inputs, batch_data_samples)
        return self.bbox_head.predict(**head_inputs, batch_data_samples=batch_data_samples, rescale=rescale)

    def detect(self, batch_inputs: Tensor, sizes: ImageSizes) -> tuple[Tensor, ...]:
        """The detections of ``predict`` in tensors alone, for exported programs.

        Args:
            batch_inputs: [B, 3, H, W], normalised.
            sizes: of the images in it.

        Returns:
            boxes [B, N, 4] (x1, y1, x2, y2) in pixels of ``batch_inputs``, scores and labels [B, N], by falling score.
        """
        return self._best(self._head_inputs(batch_inputs, sizes), sizes)[:3]

    def _best(self, head_inputs: dict, sizes: ImageSizes) -> tuple[Tensor, ...]:
        hidden, reference = head_inputs['hidden'], head_inputs.get('reference')
        (logits,), (boxes,) = self.bbox_head(hidden[-1:], None if reference is None else reference[-1:])
        return self.bbox_head.best(logits, boxes, sizes.images.flip(1).repeat(1, 2))

    def _forward(self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None) -> tuple[Tensor, Tensor]:
        return self.bbox_head(**self._head_inputs(batch_inputs, batch_data_samples))

    def _head_inputs(self, batch_inputs: Tensor, batch_data_samples: OptSampleList) -> dict:
        feats = self.extract_feat(batch_inputs, batch_data_samples)
        return self.forward_transformer(feats, batch_data_samples)

    def extract_feat(
        self,
        batch_inputs: Tensor,  # [B, 3, H, W]
        batch_data_samples: OptSampleList = None,
    ) -> tuple[Tensor, ...]:
        """The neck's maps [B, C, H, W] per level.

        Args:
            batch_data_samples: tell ``own_maps`` the padding; None: no padding.
        """
        if not self.own_maps or not is_padded(batch_data_samples):
            return super().extract_feat(batch_inputs)
        return on_own_maps(self.neck, self.backbone(batch_inputs), batch_data_samples)

    def forward_transformer(self, img_feats: tuple[Tensor, ...], batch_data_samples: OptSampleList = None) -> dict:
        """The steps of mmdet's ``DetectionTransformer``; in training, further queries join before the decoder."""
        encoder_inputs, decoder_inputs = self.pre_transformer(img_feats, batch_data_samples)
        queries, head_inputs = self.pre_decoder(**self.forward_encoder(**encoder_inputs))
        decoder_inputs.update(queries)
        if self.training and (groups := self.add_training_queries(decoder_inputs, batch_data_samples)) is not None:
            head_inputs['groups'] = groups
        return dict(head_inputs, **self.forward_decoder(**decoder_inputs))

    @staticmethod
    def with_shapes(mlvl_feats: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[tuple[int, int]]]:
        """The maps [B, C, H, W] and their (H, W) as Python's numbers: no device sync anywhere."""
        shapes = host_shapes([feat.shape[-2:] for feat in mlvl_feats])
        if torch.jit.is_tracing():  # shapes become constants: expand refuses maps of any other, also turned ones
            mlvl_feats = tuple(feat.expand(-1, -1, *shape) for feat, shape in zip(mlvl_feats, shapes))
        return mlvl_feats, shapes

    def flatten_levels(
        self,
        mlvl_feats: tuple[Tensor, ...],  # [B, C, H, W] per level
        batch_data_samples: OptSampleList,
    ) -> tuple[list[tuple[int, int]], list[Tensor | None], list[Tensor], list[Tensor | None], list[Tensor]]:
        """Describe the maps of the neck.

        Args:
            batch_data_samples: their ``img_shape`` and ``batch_input_shape`` tell the padding; None: no padding.

        Returns:
            per level its shape (H, W) and its mask [B, H, W], True = padding; the cells [B, H*W, C], their mask
            [B, H*W] and their positions [B, H*W, C], which include ``level_embed`` where the detector has one.
        """
        if len(mlvl_feats) != self.num_feature_levels:
            raise ValueError(
                f'the neck gives {len(mlvl_feats)} levels, num_feature_levels is {self.num_feature_levels}'
            )
        mlvl_feats, spatial_shapes = self.with_shapes(mlvl_feats)
        masks_of = own_masks if self.own_maps else padding_masks
        masks = masks_of(spatial_shapes, batch_data_samples, mlvl_feats[0].device)
        feats, flat_masks, positions = [], [], []
        for level, (feat, mask) in enumerate(zip(mlvl_feats, masks)):
            position = self.positions_of_cells(feat, mask)
            feats.append(feat.flatten(2).transpose(1, 2))
            flat_masks.append(mask if mask is None else mask.flatten(1))
            positions.append(position if self.level_embed is None else position + self.level_embed[level])
        return spatial_shapes, masks, feats, flat_masks, positions

    def positions_of_cells(
        self,
        feat: Tensor,  # [B, C, H, W]
        mask: Tensor | None,  # [B, H, W], True = padding
    ) -> Tensor | None:  # [B, H*W, C]; None: no attention asks for them
        return self.positional_encoding(mask, input=feat).flatten(2).transpose(1, 2).to(feat.dtype)

    def forward_decoder(
        self,
        query: Tensor,  # [B, Q, C]
        memory: Tensor,  # [B, S, C]
        memory_mask: Tensor | None,  # [B, S], True = padding
        **inputs,
    ) -> dict:
        """``inputs`` as the decoder's ``forward`` takes them."""
        hidden, reference = self.decoder(
            query,
            value=memory,
            key_padding_mask=memory_mask,
            refine=self.bbox_head.refine if self.refines_boxes else None,
            **inputs,
        )
        return dict(hidden=hidden) if reference is None else dict(hidden=hidden, reference=reference)
