"""Positions as channels: of a feature map's cells, learned in place of sines, and of the queries' references."""

import math

import torch
from mmdet.models.layers import LearnedPositionalEncoding as MMDetLearnedPositionalEncoding
from torch import Tensor

from mmdet_ddetr.registry import MODELS


@MODELS.register_module()
class LearnedPositionalEncoding(MMDetLearnedPositionalEncoding):
    """A vector for each column and one for each row, concatenated (official ``PositionEmbeddingLearned``).

    mmdet's, with its arguments and state_dict, for the detectors here, which call their encodings with the mask, None
    without padding, and the feature map. Padding moves no position: cells count from the corner of the map.

    Args:
        num_feats: half of the channels, given to x first, then to y.
        row_num_embed, col_num_embed: rows and columns that have a vector, 50 each in the official codes. That does for
            stride 32; a level of stride 8 has 100 x 167 cells in an image of 800 x 1333.
    """

    def forward(self, mask: Tensor | None, input: Tensor) -> Tensor:
        """mask [B, H, W] or None, input [B, C, H, W] -> [B, 2 * num_feats, H, W].

        Raises:
            ValueError: the map has more rows or columns than there are vectors.
        """
        B, _, H, W = input.shape
        if max(H - self.row_num_embed, W - self.col_num_embed) > 0:
            raise ValueError(
                f'input must have at most row_num_embed x col_num_embed = {self.row_num_embed} x {self.col_num_embed} '
                f'cells, got {H} x {W}'
            )
        return super().forward(input.new_empty(B, H, W))  # of which it reads the shape alone


def sine_embedding(
    coordinates: Tensor,  # [..., n]
    num_feats: int,
    temperature: float = 10000.0,
) -> Tensor:  # [..., n * num_feats]
    """Sines and cosines of coordinates, in their order, in fp32 at least (official ``get_proposal_pos_embed``).

    Args:
        coordinates: normalised by the unpadded image, 1 being a whole turn of the slowest sine.
        num_feats: channels of one coordinate, sine and cosine in turns.
    """
    index = torch.arange(num_feats, dtype=torch.float32, device=coordinates.device)
    period = temperature ** (2 * torch.div(index, 2, rounding_mode='floor') / num_feats)
    phase = (
        coordinates.to(torch.promote_types(coordinates.dtype, torch.float32))[..., None] * 2 * math.pi / period
    )  # [..., n, num_feats]
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], -1).flatten(-3)
