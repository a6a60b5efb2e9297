"""The two attentions of DAT, on maps ``[B, H, W, C]`` of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet_ddetr.layers.dot_product_attention import DotProductAttention
from mmdet_ddetr.ops import ms_deform_attn


class LocalAttention(nn.Module):
    """Attention within windows of ``window_size`` x ``window_size`` cells, as in Swin Transformer.

    A map that the windows do not divide is padded with zeros below and at the right; as in Swin, they are seen.

    Args:
        embed_dims: channels C.
        num_heads: heads M.
        window_size: cells along the side of a window.
        shift_size: cells that the windows are moved by, down and to the right. Cells that only the cyclic shift puts
            side by side do not see each other.
    """

    def __init__(self, embed_dims: int, num_heads: int, window_size: int, shift_size: int = 0):
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.attend = DotProductAttention(num_heads)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        side = 2 * window_size - 1  # displacements along an axis
        self.position_bias_table = nn.Parameter(torch.empty(side * side, num_heads))
        nn.init.trunc_normal_(self.position_bias_table, std=0.01)
        cell = torch.arange(window_size)
        displacement = cell[:, None] - cell + window_size - 1  # [query, key] along an axis
        index = side * displacement[:, None, :, None] + displacement[None, :, None, :]
        self.register_buffer('position_index', index.reshape(window_size**2, window_size**2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C]
        B, H, W, C = x.shape
        size, shift = self.window_size, self.shift_size
        x = F.pad(x, (0, 0, 0, missing(W, size), 0, missing(H, size)))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        bias = self.position_bias_table[self.position_index].permute(2, 0, 1)[None]  # [1, M, size^2, size^2]
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            apart = self._apart(rows, columns, x.device)  # [windows, size^2, size^2]
            bias = bias.masked_fill(apart[:, None], float('-inf')).repeat(B, 1, 1, 1)
        windows = x.view(B, rows, size, columns, size, C).transpose(2, 3).reshape(-1, size * size, C)
        windows = self.output_proj(self.attend(*self.qkv(windows).chunk(3, -1), bias=bias))
        x = windows.view(B, rows, columns, size, size, C).transpose(2, 3).reshape(B, rows * size, columns * size, C)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :H, :W]

    def _apart(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Which two cells of a window of the shifted map come from different ends of the map."""
        size = self.window_size
        row, column = (torch.arange(n * size, device=device) >= n * size - self.shift_size for n in (rows, columns))
        end = 2 * row[:, None].int() + column.int()
        end = end.view(rows, size, columns, size).transpose(1, 2).reshape(-1, size * size)
        return end[:, :, None] != end[:, None]


class DeformableAttention(nn.Module):
    """Attention of every cell to as many points of the map, moved by learned offsets (DAT, section 3.2).

    The points are the same for all queries; each group of channels has its own.

    Args:
        embed_dims: channels C.
        num_heads: heads M, a multiple of ``num_groups``.
        num_groups: groups G of channels.
        kernel_size: of the depth-wise convolution that finds the offsets.
        map_size: (H, W) of the map for which the table of relative positions has an entry for each displacement. On
            maps of other sizes the table is read in the map's own units, the whole height and width.
        offset_range: a point moves by at most half as many cells, up or down and to either side.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_groups: int,
        kernel_size: int,
        map_size: tuple[int, int],
        offset_range: float = 2.0,
    ):
        super().__init__()
        self.num_groups = num_groups
        self.offset_range = offset_range
        group_dims = embed_dims // num_groups
        self.offset_conv = nn.Conv2d(group_dims, group_dims, kernel_size, padding=kernel_size // 2, groups=group_dims)
        self.offset_norm = nn.LayerNorm(group_dims)
        self.offset_proj = nn.Linear(group_dims, 2, bias=False)
        self.query_proj = nn.Linear(embed_dims, embed_dims)
        self.key_proj = nn.Linear(embed_dims, embed_dims)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.attend = DotProductAttention(num_heads)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.position_bias_table = nn.Parameter(torch.empty(num_heads, *(2 * n - 1 for n in map_size)))
        nn.init.trunc_normal_(self.position_bias_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C]
        query = self.query_proj(x)
        points = self.sampling_points(query)
        sampled = self.sample(x, points)
        key, value = self.key_proj(sampled), self.value_proj(sampled)
        bias = self.position_bias(cell_centres(*x.shape[1:3], points), points)
        return self.output_proj(self.attend(query.flatten(1, 2), key, value, bias=bias)).view_as(x)

    def sampling_points(self, query: Tensor) -> Tensor:
        """Where keys and values are sampled.

        Args:
            query: [B, H, W, C].

        Returns:
            [B, G, H*W, 2], (x, y) in the map, 0 = its near edge, 1 = its far edge, in fp32; before they are squeezed
            into the grid of cell centres, see ``squeezed``.
        """
        B, H, W, C = query.shape
        groups = query.unflatten(-1, (self.num_groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # [B*G, C/G, H, W]
        offsets = self.offset_norm(self.offset_conv(groups).permute(0, 2, 3, 1))
        offsets = self.offset_proj(F.gelu(offsets)).view(B, self.num_groups, H * W, 2)
        offsets = self.offset_range / 2 * offsets.to(_position_dtype(offsets)).tanh()  # in cells
        return cell_centres(H, W, offsets) + torch.stack([o / n for o, n in zip(offsets.unbind(-1), (W, H))], -1)

    def sample(self, x: Tensor, points: Tensor) -> Tensor:  # [B, H, W, C], [B, G, H*W, 2] -> [B, H*W, C]
        """The map at the points, by the attention op: as fast as ``grid_sample``, backward two to three times."""
        B, H, W, C = x.shape
        locations = squeezed(points, H, W).transpose(1, 2)[:, :, :, None, None]  # [B, H*W, G, L=1, K=1, 2]
        value = x.flatten(1, 2).unflatten(-1, (self.num_groups, -1))
        return ms_deform_attn(value, [(H, W)], locations, torch.ones_like(locations[..., 0]))

    def position_bias(self, queries: Tensor, points: Tensor) -> Tensor:  # [Q, 2], [B, G, S, 2] -> [B, M, Q, S]
        """The table at the displacements between queries and points.

        By ``grid_sample``: it has few channels and many points, for which the attention op takes five times as long.
        """
        B = points.shape[0]
        grid = queries[:, None] - points.flatten(0, 1)[:, None]  # [B*G, Q, S, 2] in [-1, 1]
        table = self.position_bias_table.unflatten(0, (self.num_groups, -1)).to(grid.dtype).repeat(B, 1, 1, 1)
        bias = F.grid_sample(table, grid, align_corners=True)  # [B*G, M/G, Q, S]
        return bias.view(B, self.position_bias_table.shape[0], *bias.shape[2:])


def missing(cells: int, size: int) -> int:
    """From ``cells`` up to a multiple of ``size``.

    Not as -cells % size: with that on top, ``torch.export`` sees no multiple in cells that it traces as a symbol, and
    proves it at every reshape, for more than ten minutes.
    """
    return (cells + size - 1) // size * size - cells


def squeezed(points: Tensor, H: int, W: int) -> Tensor:  # [..., 2], (x, y), 0 and 1 the edges of the map
    """Where the map is read: 0 and 1 become the centres of its first and last cell, the official ``align_corners``."""
    return torch.stack([(p * (n - 1) + 0.5) / n for p, n in zip(points.unbind(-1), (W, H))], -1)


def _position_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)  # 16 bits cannot tell the points of a large map apart


def cell_centres(H: int, W: int, like: Tensor) -> Tensor:  # [H*W, 2], (x, y), 0 and 1 the edges of the map
    y, x = ((torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n for n in (H, W))
    return torch.stack(torch.meshgrid(x, y, indexing='xy'), -1).flatten(0, 1)
