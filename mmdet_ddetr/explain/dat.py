"""Which points of the map DAT's deformable attentions look at."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdet_ddetr.backbones.dat_attention import DeformableAttention, cell_centres, squeezed


@dataclass(frozen=True)
class DeformedAttention:
    """One call of a deformable attention with G groups and M heads, on a map of H x W cells and as many points.

    The weights of all queries would fill the memory: they are computed for the query asked for.
    """

    name: str  # of the module in the detector
    module: DeformableAttention
    size: tuple[int, int]  # (H, W)
    queries: Tensor  # [B, H*W, M*D], projected
    keys: Tensor  # [B, H*W, M*D], projected
    moved: Tensor  # [B, G, H*W, 2], as ``sampling_points`` gives them

    @property
    def num_groups(self) -> int:
        return self.moved.shape[1]

    def points(self, image: int) -> Tensor:  # [G, H*W, 2]
        """(x, y) in the map, 1.0 = its far edge."""
        return squeezed(self.moved[image], *self.size).cpu()

    def shifts(self, image: int) -> Tensor:  # [G, H*W]
        """How far each point is from the centre of its cell, in cells."""
        H, W = self.size
        moved = (self.moved[image] - cell_centres(H, W, self.moved)) * self.moved.new_tensor([W, H])
        return moved.norm(dim=-1).cpu()

    @torch.no_grad()
    def weights(self, image: int, query: int) -> Tensor:  # [G, H*W]
        """What each point counts for a cell, the average over the heads of its group; sums to 1 in each group."""
        M = self.module.attend.num_heads
        query_at = cell_centres(*self.size, self.moved)[query : query + 1]
        bias = self.module.position_bias(query_at, self.moved[image : image + 1])[0, :, 0]  # [M, H*W]
        q = self.queries[image, query].float().view(M, 1, -1)
        k = self.keys[image].float().unflatten(-1, (M, -1)).transpose(0, 1)
        logits = (q * k).sum(-1) / q.shape[-1] ** 0.5 + bias
        return logits.softmax(-1).unflatten(0, (self.num_groups, -1)).mean(1).cpu()


def last_of_stages(calls: list[DeformedAttention]) -> list[int]:
    """The last attention of each size of maps, the finest first."""
    return sorted({call.size: index for index, call in enumerate(calls)}.values())


def watch(model: nn.Module, calls: list[DeformedAttention]) -> list:
    """Add each call of a deformable attention to ``calls``. Returns the hooks."""
    return [
        module.register_forward_pre_hook(_hook(name, calls))
        for name, module in model.named_modules()
        if isinstance(module, DeformableAttention)
    ]


def _hook(name: str, calls: list[DeformedAttention]):
    @torch.no_grad()
    def hook(module, args):
        (x,) = args  # [B, H, W, C]
        query = module.query_proj(x)
        points = module.sampling_points(query)
        keys = module.key_proj(module.sample(x, points))
        calls.append(DeformedAttention(name, module, tuple(x.shape[1:3]), query.flatten(1, 2), keys, points))

    return hook
