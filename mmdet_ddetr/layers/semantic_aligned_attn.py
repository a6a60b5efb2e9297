"""Semantic-aligned attention (SAM-DETR, Zhang et al., CVPR 2022, section 3)."""

from collections.abc import Sequence

import torch
from mmdet.models.layers import MLP
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdet_ddetr.ops import ms_deform_attn
from mmdet_ddetr.registry import MODELS

from .attention_arguments import check_heads
from .conditional_transformer import position_of
from .dot_product_attention import DotProductAttention
from .dropout import Dropout
from .gaussian import log_gaussian
from .roi_align import roi_align


class SemanticsAligner(BaseModule):
    """Makes queries of the features that are to be searched: of those at salient points in the queries' boxes.

    The features of a box tell where in it the points of the M heads lie. What is found there, weighed by the query's
    state, takes the place of the query, so that both sides of the cross-attention are of the same kind (figure 3 b).

    Args:
        embed_dims: channels C.
        num_heads: heads M, one point each.
        hidden_dims: widths of the hidden layers that find the points.
        with_scales: predict the two scales of a Gaussian around each point, too (SMCA).
        bins: rows and columns of features of a box.
        boxes_on_padding: let boxes read the padding of a batch, as the official code does, so that an image's
            detections depend on its neighbours. By default, what lies outside of the image is outside of the map.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        hidden_dims: Sequence[int] = (256, 512, 512),
        with_scales: bool = False,
        bins: int = 7,
        boxes_on_padding: bool = False,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.bins = bins
        self.boxes_on_padding = boxes_on_padding
        self.squeeze = nn.Conv2d(embed_dims, embed_dims // 4, 1)
        widths = [embed_dims // 4 * bins**2, *hidden_dims]
        layers = [layer for n, m in zip(widths, widths[1:]) for layer in (nn.Linear(n, m), nn.ReLU())]
        self.points = nn.Sequential(*layers, nn.Linear(widths[-1], num_heads * (4 if with_scales else 2)))
        nn.init.zeros_(self.points[-1].bias)
        self.content_gate = nn.Linear(embed_dims, embed_dims * num_heads)
        self.position_gate = nn.Linear(embed_dims, embed_dims * num_heads)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        memory: Tensor,  # [B, H*W, C]
        reference_points: Tensor,  # [B, Q, 4]
        shape: tuple[int, int],  # (H, W)
        cells: Tensor,  # [B, 2]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Look into the boxes.

        Args:
            reference_points: boxes (cx, cy, w, h) in [0, 1], normalised by the unpadded image.
            cells: (width, height) of the unpadded image in cells of the map.

        Returns:
            contents [B, Q, M, C] and positions [B, Q, M, C] of the new queries; the salient points [B, Q, M, 2], (x, y)
            in [0, 1] of the unpadded image; scales [B, Q, M, 2] or None.
        """
        B, Q, C = query.shape
        M, bins = self.num_heads, self.bins
        boxes = reference_points.detach() * cells.repeat(1, 2)[:, None]
        features = roi_align(memory, shape, boxes, None if self.boxes_on_padding else cells, bins)  # [B, Q, bins^2, C]
        maps = features.flatten(0, 1)
        squeezed = self.squeeze(maps.unflatten(1, (bins, bins)).permute(0, 3, 1, 2)).relu()  # [B*Q, C/4, bins, bins]
        points, *scales = self.points(squeezed.flatten(1)).view(B, Q, -1, M, 2).float().unbind(2)
        points = points.tanh()  # in the box, from -1 to 1

        places = (points / 2 + 0.5).view(B * Q, M, 1, 1, 1, 2)
        content = ms_deform_attn(maps[:, :, None], [(bins, bins)], places, places.new_ones(places.shape[:-1]))
        content = content.view(B, Q, M, C) * self.content_gate(query).view(B, Q, M, C).sigmoid()

        points = reference_points[:, :, None, :2] + reference_points[:, :, None, 2:] * points / 2
        # Detached: positions tell where a point is, but do not move it (official code).
        position = position_of(points.detach(), C).to(query.dtype)
        position = position * self.position_gate(query).view(B, Q, M, C).sigmoid()
        return content, position, points, scales[0] if scales else None


@MODELS.register_module()
class SemanticAlignedAttention(BaseModule):
    """Cross-attention whose queries are features of the map, sampled at a salient point for each head.

    Every head compares whole feature vectors, of all C channels, so that keys are the same for all heads.

    Args:
        embed_dims: channels C.
        num_heads: heads M.
        attn_drop: dropout of the weights.
        proj_drop: dropout of the output before the residual.
        gaussian: multiply the weights by a Gaussian around each point (SMCA).
        smooth: what the squared distances to the points are divided by, in cells.
        hidden_dims, bins, boxes_on_padding: as in ``SemanticsAligner``.
        batch_first: True; accepted for mmdet's configs.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        gaussian: bool = False,
        smooth: float = 8.0,
        hidden_dims: Sequence[int] = (256, 512, 512),
        bins: int = 7,
        boxes_on_padding: bool = False,
        batch_first: bool = True,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        check_heads(self, embed_dims, num_heads, batch_first)
        if embed_dims % 4:
            raise ValueError(f'embed_dims must be divisible by 4, got {embed_dims}')
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.smooth = smooth
        self.aligner = SemanticsAligner(embed_dims, num_heads, hidden_dims, gaussian, bins, boxes_on_padding)
        self.qcontent_proj = nn.Linear(embed_dims, embed_dims)
        self.kcontent_proj = nn.Linear(embed_dims, embed_dims)
        self.v_proj = nn.Linear(embed_dims, embed_dims)
        self.qpos_sine_proj = MLP(embed_dims, embed_dims, embed_dims, 2)
        self.kpos_sine_proj = MLP(embed_dims, embed_dims, embed_dims, 2)
        self.out_proj = nn.Linear(embed_dims, embed_dims)
        nn.init.constant_(self.out_proj.bias, 0.0)
        self.attention = DotProductAttention(num_heads, attn_drop)
        self.proj_drop = Dropout(proj_drop)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        key: Tensor,  # [B, H*W, C]
        value: Tensor,  # [B, H*W, C]
        key_pos: Tensor,  # [B, H*W, C]
        reference_points: Tensor,  # [B, Q, 4]
        spatial_shapes: list[tuple[int, int]],  # one (H, W)
        valid_ratios: Tensor,  # [B, 1, 2]
        attn_mask: Tensor | None = None,  # [Q, H*W], True = not seen
        key_padding_mask: Tensor | None = None,  # [B, H*W], True = padding
        **kwargs,
    ) -> Tensor:  # [B, Q, C]
        """Attend and add the residual.

        Args:
            value: the map, which the new queries are sampled from, too.
            reference_points: boxes (cx, cy, w, h) in [0, 1], normalised by the unpadded image.
            valid_ratios: (x, y) share of the map that is image, the rest being padding.

        Raises:
            ValueError: the keys are of several maps, or the references are no boxes.
        """
        q, k, _, bias = self.align(query, key, value, key_pos, reference_points, spatial_shapes, valid_ratios)
        output = self.attention(q.flatten(2), k, self.v_proj(value), key_padding_mask, attn_mask, bias)
        return query + self.proj_drop(self.out_proj(output))

    def align(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        valid_ratios: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What is compared: arguments as in ``forward``.

        Returns:
            new queries [B, Q, M, C], keys [B, H*W, C], the salient points [B, Q, M, 2], (x, y) in [0, 1] of the
            unpadded image, and the logarithm of the Gaussians around them, [B, M, Q, H*W], or None.
        """
        if len(spatial_shapes) != 1 or reference_points.shape[-1] != 4:
            raise ValueError(
                'SemanticAlignedAttention looks into boxes on one map: expected one of spatial_shapes and '
                f'reference_points [B, Q, 4], got {spatial_shapes} and {reference_points.shape=}'
            )
        H, W = spatial_shapes[0]
        cells = torch.stack([valid_ratios[:, 0, 0] * W, valid_ratios[:, 0, 1] * H], -1).round()  # [B, 2]
        content, position, points, scales = self.aligner(query, value, reference_points, (H, W), cells)
        q = self.qcontent_proj(content) + self.qpos_sine_proj(position)
        k = self.kcontent_proj(key) + self.kpos_sine_proj(key_pos)
        bias = None
        if scales is not None:
            bias = log_gaussian(points * cells[:, None, None], scales, (H, W), self.smooth, first_cell=0.5)
        return q, k, points, bias
