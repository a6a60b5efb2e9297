"""The transformer of SMCA-DETR (Gao et al., ICCV 2021): its decoder, and two encoders of several levels."""

from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmdet.models.layers import MLP
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS

from .conv_exchange import ConvExchange
from .multihead_attention import MultiheadAttention
from .own_maps import crop_levels, pad_levels
from .padding import Shape
from .smca_attn import SpatiallyModulatedAttention
from .transformer import DetrDecoder, DetrDecoderLayer, DetrEncoder, DetrEncoderLayer


@MODELS.register_module()
class SMCADecoderLayer(DetrDecoderLayer):
    """Self-attention among the queries, spatially modulated cross-attention, FFN, each with residual and post-norm.

    The Gaussians follow from the queries as the layer gets them, before its self-attention.
    """

    cross_attention = SpatiallyModulatedAttention

    def __init__(self, *args, norm_cfg: dict = dict(type='LN'), **kwargs):
        super().__init__(*args, norm_cfg=norm_cfg, **kwargs)
        self.place_norm = build_norm_layer(norm_cfg, self.embed_dims)[1]

    def forward(self, query: Tensor, query_pos: Tensor, **inputs) -> Tensor:
        """query, query_pos [B, Q, C]; the rest as in ``DetrDecoderLayer`` and ``SpatiallyModulatedAttention``."""
        return super().forward(query, query_pos, place=self.place(query, query_pos), **inputs)

    def place(self, query: Tensor, query_pos: Tensor) -> Tensor:  # [B, Q, C]
        """What tells where a query looks."""
        return self.place_norm(query + query_pos)


@MODELS.register_module()
class SMCADecoder(DetrDecoder):
    """Decoder whose queries look around a reference point of their own, (cx, cy) in [0, 1], the same in every layer.

    The first layer predicts the point; boxes are predicted relative to it.
    """

    layer = SMCADecoderLayer

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ref_point_head = MLP(self.embed_dims, self.embed_dims, 2, 3)

    def forward(self, query: Tensor, *, query_pos: Tensor, **inputs) -> tuple[Tensor, Tensor]:
        """query, query_pos [B, Q, C]; the rest as ``DetrDecoder.forward``, without references."""
        reference_points = self.ref_point_head(self.layers[0].place(query, query_pos)).float().sigmoid()
        return super().forward(query, query_pos=query_pos, reference_points=reference_points, **inputs)

    def layer_inputs(
        self,
        index: int,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, 2]
        **inputs,
    ) -> dict:
        return dict(inputs, reference_points=reference_points)


@MODELS.register_module()
class OwnLevelAttention(MultiheadAttention):
    """Self-attention of the cells of several levels, each with the cells of its own level; one set of parameters."""

    def forward(
        self,
        query: Tensor,  # [B, S, C]
        query_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S], True = padding
        spatial_shapes: list[Shape] | None = None,  # (H, W) per level; None: all cells see all
        **kwargs,
    ) -> Tensor:  # [B, S, C]
        if spatial_shapes is None:
            return super().forward(query, query_pos=query_pos, key_padding_mask=key_padding_mask)
        sizes = [H * W for H, W in spatial_shapes]
        masks = [None] * len(sizes) if key_padding_mask is None else key_padding_mask.split(sizes, 1)
        attend = super().forward
        of_levels = zip(query.split(sizes, 1), query_pos.split(sizes, 1), masks)
        return torch.cat([attend(x, query_pos=position, key_padding_mask=mask) for x, position, mask in of_levels], 1)


@MODELS.register_module()
class SMCAEncoderLayer(DetrEncoderLayer):
    """Self-attention within each level, and FFN, each with residual and post-norm."""

    attention = OwnLevelAttention


@MODELS.register_module()
class SMCAEncoder(DetrEncoder):
    """Encoder over all levels: most layers attend within each level, some between all (section 3.2.3).

    Args:
        inter_layers: indices of the layers that attend between all levels; None: the middle one, as in the paper, where
            it is the third of five.
        **kwargs: as ``DetrEncoder``'s.
    """

    layer = SMCAEncoderLayer

    def __init__(self, num_layers: int, *args, inter_layers: Sequence[int] | None = None, **kwargs):
        super().__init__(num_layers, *args, **kwargs)
        self.inter_layers = (num_layers // 2,) if inter_layers is None else tuple(inter_layers)
        if not set(self.inter_layers) <= set(range(num_layers)):
            raise ValueError(f'inter_layers must be of 0..{num_layers - 1}, got {inter_layers}')

    def layer_inputs(
        self,
        index: int,
        query: Tensor,  # [B, S, C]
        *,
        spatial_shapes: list[Shape],  # (H, W) per level
        own_shapes: list[list[Shape]] | None = None,  # for encoders that convolve
        **inputs,
    ) -> dict:
        return dict(inputs, spatial_shapes=None if index in self.inter_layers else spatial_shapes)


@MODELS.register_module()
class ConvEncoderLayer(DetrEncoderLayer):
    """Convolutions within and between the levels in place of attention, and FFN, each with residual and post-norm."""

    attention = ConvExchange


@MODELS.register_module()
class ConvEncoder(DetrEncoder):
    """The encoder of the released multi-scale archive, which is not the paper's.

    Layers of convolutions; a last convolution halves the finest level, so that the decoder sees that stride twice.
    """

    layer = ConvEncoderLayer

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.downsample = nn.Conv2d(self.embed_dims, self.embed_dims, 3, stride=2, padding=1)

    @staticmethod
    def memory_levels(num_levels: int) -> list[int]:
        return [1, *range(1, num_levels)]

    def forward(
        self,
        query: Tensor,  # [B, S, C]
        query_pos: Tensor,  # [B, S, C]
        key_padding_mask: Tensor | None,  # [B, S]; convolutions see the padding, unless there are own_shapes
        spatial_shapes: list[Shape],  # (H, W) per level
        own_shapes: list[list[Shape]] | None = None,
        **kwargs,
    ) -> Tensor:  # [B, S', C]
        """Run the layers.

        Args:
            own_shapes: per level, (h, w) of each image's part of the map; the layers run on these parts, so that no
                image's result depends on the others'. None: on the padded maps, as in the official code.
        """
        if own_shapes is None:
            return self._encode(query, query_pos, spatial_shapes)
        memory_shapes = [spatial_shapes[level] for level in self.memory_levels(len(spatial_shapes))]
        memory = []
        for image, own in enumerate(zip(*own_shapes)):
            parts = [crop_levels(x[image : image + 1], spatial_shapes, own) for x in (query, query_pos)]
            own_memory = self._encode(*parts, own)
            own_memory_shapes = [own[level] for level in self.memory_levels(len(own))]
            memory.append(pad_levels(own_memory, own_memory_shapes, memory_shapes))
        return torch.cat(memory)

    def _encode(self, query: Tensor, query_pos: Tensor, spatial_shapes: Sequence[Shape]) -> Tensor:
        memory = super().forward(query, query_pos, None, spatial_shapes=spatial_shapes)
        H, W = spatial_shapes[0]
        finest, others = memory[:, : H * W], memory[:, H * W :]
        finest = self.downsample(finest.transpose(1, 2).unflatten(-1, (H, W)))
        return torch.cat([finest.flatten(2).transpose(1, 2), others], 1)
