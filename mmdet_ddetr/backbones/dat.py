"""DAT: Vision Transformer with Deformable Attention, https://arxiv.org/abs/2201.00520.

Source: the paper and https://github.com/LeapLabTHU/DAT at 7edbb9b, the last commit of this model; later ones are DAT++.
"""

import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdet_ddetr.layers.counts import check_counts, check_pairs
from mmdet_ddetr.registry import MODELS

from .dat_attention import DeformableAttention, LocalAttention, missing
from .dat_weights import SCHEME, check_fits
from .stages import num_built

# Per stage; blocks are repeated in this order: L local, S shifted windows, D deformable attention.
BLOCKS = ('LS', 'LS', 'LD', 'LD')
ARCHS = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), num_groups=(1, 1, 3, 6)),
    'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), num_groups=(1, 1, 3, 6)),
    'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), num_groups=(1, 1, 4, 8)),
}
KERNEL_SIZES = (9, 7, 5, 3)  # of the offsets' convolution, by stage
PATCH = 4  # pixels along the side of a cell of the first stage


def _arch_of(arch: str | dict, num_stages: int) -> dict:
    """The sizes that ``DAT``'s argument gives, for at least ``num_stages`` stages."""
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'arch: got {arch!r}, expected one of {", ".join(ARCHS)}')
        return ARCHS[arch]
    names = list(ARCHS['tiny'])
    if sorted(arch) != sorted(names):
        raise ValueError(f'arch: got {", ".join(arch) or "an empty dict"}, expected {", ".join(names)}')
    per_stage = {name: arch[name] for name in names[1:]}
    for name, numbers in per_stage.items():
        if len(numbers) < num_stages:
            raise ValueError(f'arch: got {numbers} as {name}, expected one for each of {num_stages} stages')
    for i, (_, heads, groups) in enumerate(zip(*per_stage.values())):
        channels = arch['embed_dims'] * 2**i
        if channels < 1 or heads < 1 or groups < 1 or channels % heads or heads % groups:
            raise ValueError(
                f'arch: got {heads} heads and {groups} groups in stage {i + 1}, expected heads that divide its '
                f'{channels} channels, and groups that divide the heads'
            )
    return arch


class Block(nn.Module):
    """Attention and a feed-forward network, each after a layer norm and beside a shortcut."""

    def __init__(self, embed_dims: int, attn: nn.Module, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dims)
        self.ffn = nn.Sequential(
            nn.Linear(embed_dims, 4 * embed_dims), nn.GELU(), nn.Linear(4 * embed_dims, embed_dims)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C]
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class PatchMerging(nn.Module):
    """Every ``size`` x ``size`` cells into one. Rows and columns that are missing at the far ends count as zeros."""

    def __init__(self, in_channels: int, out_channels: int, size: int, bias: bool = False):
        super().__init__()
        self.size = size
        self.proj = nn.Conv2d(in_channels, out_channels, size, stride=size, bias=bias)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, ceil(H / size), ceil(W / size), out_channels]
        H, W = x.shape[-2:]
        x = F.pad(x, (0, missing(W, self.size), 0, missing(H, self.size)))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


@MODELS.register_module()
class DAT(BaseModule):
    """Vision Transformer with Deformable Attention, without its classification head.

    Input is RGB with ImageNet's mean and standard deviation, of any size. Each output has a layer norm of its own, as
    in the authors' detection code.

    ============  ======  ======  ======  ======
    output index       0       1       2       3
    stride             4       8      16      32
    ============  ======  ======  ======  ======
    tiny, small       96     192     384     768  channels
    base             128     256     512    1024  channels
    ============  ======  ======  ======  ======

    The authors' ImageNet weights: ``init_cfg=dict(type='Pretrained', checkpoint='dat://tiny')`` reads them from where
    torch keeps its downloads, and says where to get the file if it is not there; ``'dat://PATH'`` reads any file. Both
    are strict: a weight that is missing, left over or of another shape is an error.

    Attention of stage 3 is between all cells: its memory grows with the square of the image's area.

    Args:
        arch (str | dict): 'tiny', 'small' or 'base'; or ``embed_dims`` of the first stage, and ``depths``,
            ``num_heads`` and ``num_groups`` of each stage.
        img_size (int | tuple[int, int]): Height and width of the pre-training images; gives the size of the tables of
            relative positions. 384 for the weights of that resolution.
        window_size (int): Of local attention. 12 for the weights of resolution 384.
        out_indices (Sequence[int]): The outputs, as in the table; ascending. Stages beyond the last are not built.
        drop_path_rate (float): Probability of dropping a branch of the last block; falls linearly to 0 for the first.
        frozen_stages (int): -1 freezes nothing, 0 the patch embedding, n also the stages 1 to n.
        with_cp (bool): Save memory in training by recomputing each block in the backward pass.
        init_cfg (dict | list[dict], optional): mmengine initialisation.

    Attributes:
        out_channels (tuple[int]): Channels of each output, what the neck takes as ``in_channels``.

    Raises:
        ValueError: An unknown arch, or a number out of range. The message names the argument.
    """

    def __init__(
        self,
        arch='tiny',
        img_size=224,
        window_size=7,
        out_indices=(1, 2, 3),
        drop_path_rate=0.0,
        frozen_stages=-1,
        with_cp=False,
        init_cfg=None,
    ):
        num_stages = num_built(out_indices, frozen_stages, len(BLOCKS))
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate: got {drop_path_rate!r}, expected at least 0 and less than 1')
        check_counts(window_size=window_size)
        # the last map has a cell, so that its table of relative positions has an entry
        (img_size,) = check_pairs(PATCH * 2 ** (num_stages - 1), img_size=img_size)

        super().__init__(init_cfg)
        arch = _arch_of(arch, num_stages)
        depths, num_heads, num_groups = arch['depths'], arch['num_heads'], arch['num_groups']
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        shift_size = -(-window_size // 2)  # rounded up: not Swin's
        channels = [arch['embed_dims'] * 2**i for i in range(num_stages)]
        self.out_channels = tuple(channels[i] for i in self.out_indices)

        self.merges = nn.ModuleList()  # the first is the patch embedding
        self.stages = nn.ModuleList()
        self.norms = nn.ModuleDict({str(i): nn.LayerNorm(channels[i]) for i in self.out_indices})
        for i, C in enumerate(channels):
            self.merges.append(
                PatchMerging(channels[i - 1], C, 2, bias=False) if i else PatchMerging(3, C, PATCH, True)
            )
            map_size = tuple(n // PATCH // 2**i for n in img_size)
            stage = nn.ModuleList()
            for j in range(depths[i]):
                kind = BLOCKS[i][j % len(BLOCKS[i])]
                if kind == 'D':
                    attn = DeformableAttention(C, num_heads[i], num_groups[i], KERNEL_SIZES[i], map_size)
                else:
                    attn = LocalAttention(C, num_heads[i], window_size, shift_size if kind == 'S' else 0)
                depth = (sum(depths[:i]) + j) / max(sum(depths) - 1, 1)
                stage.append(Block(C, attn, drop_path_rate * depth))
            self.stages.append(stage)
        self._freeze_stages()

    def init_weights(self):
        """Initialise as ``init_cfg`` says.

        Raises:
            CheckpointError: a ``dat://`` file is missing, cannot be read, or does not fit this backbone: mmengine would
                log that and go on with a half-initialised one.
        """
        for cfg in [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []:
            if (cfg.get('checkpoint') or '').startswith(SCHEME):
                check_fits(self, cfg['checkpoint'], ARCHS)
        super().init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # [B, 3, H, W]
        """Return features ``[B, out_channels[i], ceil(H / stride), ceil(W / stride)]``, channels last in memory."""
        outs = []
        for i, (merge, stage) in enumerate(zip(self.merges, self.stages)):
            x = merge(x)
            for block in stage:
                x = checkpoint(block, x, use_reentrant=False) if self.with_cp and self.training else block(x)
            if i in self.out_indices:
                outs.append(self.norms[str(i)](x).permute(0, 3, 1, 2))
            x = x.permute(0, 3, 1, 2)
        return tuple(outs)

    def train(self, mode=True):
        """Set the mode, leaving frozen stages in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self):
        if self.frozen_stages < 0:
            return
        for module in [*self.merges[: max(self.frozen_stages, 1)], *self.stages[: self.frozen_stages]]:
            module.eval()
            module.requires_grad_(False)
