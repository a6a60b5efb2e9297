"""The transformer of DAB-DETR: positions of queries follow from their boxes (Liu et al., ICLR 2022, section 4)."""

from mmdet.models.layers import MLP
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS

from .conditional_transformer import ConditionalDecoderLayer, keep_query_pos_in_the_first_layer, position_of
from .deformable_transformer import DeformableDecoder
from .transformer import DetrDecoder, DetrEncoder, Refine


@MODELS.register_module()
class DABEncoder(DetrEncoder):
    """Encoder whose positions are scaled by what the layer before found, ``query_scale`` (official code)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.query_scale = MLP(self.embed_dims, self.embed_dims, self.embed_dims, 2)

    def layer_inputs(self, index: int, query: Tensor, query_pos: Tensor, **inputs) -> dict:
        return dict(inputs, query_pos=query_pos * self.query_scale(query))


@MODELS.register_module()
class DABDecoder(DetrDecoder):
    """Decoder whose queries are boxes, which every layer refines.

    The sine embedding of a box is both the position of its query among the others (``ref_point_head``) and, scaled, its
    position in cross-attention: in x by ``w_ref / w`` and in y by ``h_ref / h``, so that the attention to positions has
    the extent of the box (section 4.4, figure 6).

    Args:
        query_dim: 4: boxes (cx, cy, w, h); 2: points (cx, cy).
        query_scale_type: what scales the positions of cross-attention in addition: 'cond_elewise' a vector and
            'cond_scalar' a number that follow from what the layer before found, 'fix_elewise' a learned vector a layer.
        with_modulated_hw_attn: scale by the sizes; for boxes only.
        look_forward_twice, refine_before_norm, ...: as in ``DetrDecoder``; DAB-DETR does both.
    """

    layer = ConditionalDecoderLayer

    def __init__(
        self,
        *args,
        query_dim: int = 4,
        query_scale_type: str = 'cond_elewise',
        with_modulated_hw_attn: bool = True,
        look_forward_twice: bool = True,
        refine_before_norm: bool = True,
        **kwargs,
    ):
        super().__init__(*args, look_forward_twice=look_forward_twice, refine_before_norm=refine_before_norm, **kwargs)
        C = self.embed_dims
        if query_dim not in (2, 4):
            raise ValueError(f'query_dim must be 4 (boxes) or 2 (points), got {query_dim}')
        if with_modulated_hw_attn and query_dim != 4:
            raise ValueError('with_modulated_hw_attn must be False with query_dim=2: points have no size')
        scales = {
            'cond_elewise': lambda: MLP(C, C, C, 2),
            'cond_scalar': lambda: MLP(C, C, 1, 2),
            'fix_elewise': lambda: nn.Embedding(self.num_layers, C),
        }
        if query_scale_type not in scales:
            raise ValueError(f'query_scale_type must be one of {", ".join(scales)}, got {query_scale_type!r}')
        self.query_dim = query_dim
        self.query_scale = scales[query_scale_type]()
        self.ref_point_head = MLP(query_dim // 2 * C, C, C, 2)
        self.ref_anchor_head = MLP(C, C, 2, 2) if with_modulated_hw_attn else None
        keep_query_pos_in_the_first_layer(self.layers)

    def forward(self, query: Tensor, *, refine: Refine | None, **inputs) -> tuple[Tensor, Tensor]:
        """As ``DetrDecoder.forward``; points stay points when they are refined."""
        refine_points = None if refine is None else lambda *state: refine(*state)[..., :2]
        return super().forward(query, refine=refine if self.query_dim == 4 else refine_points, **inputs)

    def layer_inputs(
        self,
        index: int,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, 2 or 4]
        **inputs,
    ) -> dict:
        C = self.embed_dims
        embedding = position_of(reference_points, C)  # [B, Q, C or 2C]: y, x, then w, h
        position = embedding[..., :C]
        if self.ref_anchor_head is not None:
            size = self.ref_anchor_head(query).float().sigmoid()  # (w, h)
            scale_of_yx = (size / reference_points[..., 2:]).flip(-1)
            position = position * scale_of_yx.repeat_interleave(C // 2, -1)
        position = position.to(query.dtype)
        if isinstance(self.query_scale, nn.Embedding):
            position = position * self.query_scale.weight[index]
        elif index > 0:
            position = position * self.query_scale(query)
        query_pos = self.ref_point_head(embedding.to(query.dtype))
        return dict(inputs, query_pos=query_pos, ref_sine_embed=position)


@MODELS.register_module()
class DABDeformableDecoder(DeformableDecoder):
    """Decoder of deformable attention whose queries' positions follow from their boxes, as the layers refine them.

    Args:
        position_in_padded_map: embed the boxes in the coordinates of the first level's padded map, as the official code
            does, so that an image's detections depend on its neighbours. By default in those of the image.
    """

    def __init__(self, *args, position_in_padded_map: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        C = self.embed_dims
        self.position_in_padded_map = position_in_padded_map
        self.query_scale = MLP(C, C, C, 2)
        self.ref_point_head = MLP(2 * C, C, C, 2)

    def layer_inputs(
        self,
        index: int,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, 4]
        **inputs,
    ) -> dict:
        inputs = super().layer_inputs(index, query, reference_points, **inputs)
        boxes = inputs['reference_points'][:, :, 0] if self.position_in_padded_map else reference_points
        query_pos = self.ref_point_head(position_of(boxes, self.embed_dims).to(query.dtype))
        return dict(inputs, query_pos=query_pos if index == 0 else query_pos * self.query_scale(query))
