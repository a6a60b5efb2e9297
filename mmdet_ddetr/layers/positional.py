"""Learned positions of a feature map's cells, in place of sines."""

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
