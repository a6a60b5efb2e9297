"""The decoder of Conditional DETR (Meng et al., ICCV 2021, section 3.3)."""

from mmdet.models.layers import MLP
from mmengine.model import ModuleList
from torch import Tensor

from mmdet_ddetr.registry import MODELS

from .conditional_attn import ConditionalAttention
from .positional import sine_embedding
from .transformer import DetrDecoder, DetrDecoderLayer


@MODELS.register_module()
class ConditionalDecoderLayer(DetrDecoderLayer):
    """Conditional self-attention, conditional cross-attention, FFN, each with residual and post-norm."""

    self_attention = cross_attention = ConditionalAttention

    def __init__(self, *args, cross_attn_cfg: dict, **kwargs):
        super().__init__(*args, cross_attn_cfg={'cross_attn': True, **cross_attn_cfg}, **kwargs)


def position_of(reference_points: Tensor, embed_dims: int) -> Tensor:  # [B, Q, 2 or 4] -> [B, Q, C or 2C]
    """Sine embedding of a reference, in the order of the encoder's positions: y, x, then w, h."""
    order = [1, 0, 2, 3][: reference_points.shape[-1]]
    return sine_embedding(reference_points[..., order], embed_dims // 2)


def keep_query_pos_in_the_first_layer(layers: ModuleList) -> None:
    """Later layers know the queries' positions from ``ref_sine_embed`` alone, unless their config says otherwise."""
    for layer in layers[1:]:
        if isinstance(layer.cross_attn, ConditionalAttention) and not layer.cross_attn.keep_query_pos:
            layer.cross_attn.qpos_proj = None


@MODELS.register_module()
class ConditionalDecoder(DetrDecoder):
    """Decoder whose queries look around a reference point of their own, (cx, cy) in [0, 1], the same in every layer.

    The point follows from the query's learned vector, ``ref_point_head``. Its sine embedding, scaled by what the layer
    before found (``query_scale``), is the position of the query in cross-attention.
    """

    layer = ConditionalDecoderLayer

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        C = self.embed_dims
        self.query_scale = MLP(C, C, C, 2)
        self.ref_point_head = MLP(C, C, 2, 2)
        keep_query_pos_in_the_first_layer(self.layers)

    def forward(self, query: Tensor, *, query_pos: Tensor, **inputs) -> tuple[Tensor, Tensor]:
        """query, query_pos [B, Q, C]; the rest as ``DetrDecoder.forward``, without references."""
        reference_points = self.ref_point_head(query_pos).float().sigmoid()
        return super().forward(query, query_pos=query_pos, reference_points=reference_points, **inputs)

    def layer_inputs(
        self,
        index: int,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, 2]
        **inputs,
    ) -> dict:
        position = position_of(reference_points, self.embed_dims).to(query.dtype)
        return dict(inputs, ref_sine_embed=position if index == 0 else position * self.query_scale(query))
