"""Queries that the decoder runs in training only, beside those that are matched one-to-one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet_ddetr.task_modules import Targets


@dataclass(frozen=True)
class QueryGroups:
    """How many queries of each kind a training step has, in this order along the query dimension.

    Attributes:
        matching: matched one-to-one; the only ones outside training.
        one2many: matched with ``k`` copies of every target (H-DETR, arXiv:2207.13080, section 3.2).
        k_one2many: copies k, 0 where the model has no such queries.
        lambda_one2many: weight of their losses.
        dn_groups: denoising groups (DINO, arXiv:2203.03605, section 3.3), 0 where the model has none.
        dn_size: queries of a denoising group. As many as an image has targets at most are positive ones, of one target
            each, and the rest negative ones; images with fewer targets leave some empty.
        dn_learns_of_empty: whether the empty ones are to say "nothing", as in DINO, or have no loss, as in DN-DETR.
        dn_targets: those of the denoising queries, where they are not all.
    """

    matching: int
    one2many: int = 0
    k_one2many: int = 0
    lambda_one2many: float = 1.0
    dn_groups: int = 0
    dn_size: int = 0
    dn_learns_of_empty: bool = True
    dn_targets: Targets | None = None

    @property
    def denoising(self) -> int:
        """Denoising queries in all."""
        return self.dn_groups * self.dn_size

    def split(self, tensor: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """The parts of the matching, the one-to-many and the denoising queries."""
        return tensor.split([self.matching, self.one2many, self.denoising], dim)

    def dn_with_loss(self, counts: Sequence[int], device: torch.device) -> Tensor | None:  # [B, denoising]
        """Which denoising queries are told what to say, in images of so many targets; None: all are."""
        if self.dn_learns_of_empty or not self.dn_groups:
            return None
        target = torch.arange(self.denoising) % max(*counts, 1)
        return (target < torch.tensor(counts)[:, None]).to(device, non_blocking=True)

    def attention_mask(self, device: torch.device) -> Tensor:  # [Q, Q], True = not seen
        """Self-attention stays within a group, but denoising queries see the matching ones, too.

        The reverse would tell the matching queries the ground truth.
        """
        sizes = torch.tensor([self.matching, self.one2many] + [self.dn_size] * self.dn_groups)
        total = self.matching + self.one2many + self.denoising  # told: torch.compile cannot add up values
        group = torch.arange(len(sizes)).repeat_interleave(sizes, output_size=total).to(device, non_blocking=True)
        hidden = group[:, None] != group
        hidden[self.matching + self.one2many :, : self.matching] = False
        return hidden
