"""Queries that are learned places: patterns that look at each of them, and boxes whose centres stay."""

import torch
from torch import Tensor, nn

from .boxes import inverse_sigmoid


def at_every_place(
    patterns: Tensor,  # [P, C]
    places: Tensor,  # [Q, n]
) -> tuple[Tensor, Tensor]:  # [P*Q, C], [P*Q, n]
    """Each pattern at each place, so that several objects can have one place (Anchor DETR, arXiv:2109.07107).

    The first pattern at all places comes first.
    """
    return patterns.repeat_interleave(len(places), 0), places.repeat(len(patterns), 1)


class FixedCentres(nn.Module):
    """An embedding of places before the sigmoid whose first two columns, cx and cy, are drawn once and stay.

    They are no parameter: an optimizer's weight decay would move what gets no gradient. In a state_dict all columns are
    one tensor, ``weight``, as in ``nn.Embedding``.

    Args:
        num_embeddings: places N.
        embedding_dim: columns, 2 or 4 (cx, cy, w, h).
    """

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__()
        # Columns lie one after the other in memory, so that centres and sizes are both contiguous in one tensor.
        self.register_buffer('centres', inverse_sigmoid(torch.rand(num_embeddings, 2), eps=1e-3).t().contiguous())
        self.sizes = nn.Parameter(torch.randn(num_embeddings, embedding_dim - 2).t().contiguous())

    @property
    def weight(self) -> Tensor:  # [N, 2 or 4]
        return torch.cat([self.centres, self.sizes]).t()

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[f'{prefix}weight'] = self.weight if keep_vars else self._in_one_piece().t()

    def _in_one_piece(self) -> Tensor:  # [2 or 4, N]
        """The memory of centres and sizes: what is written into it, is written into them.

        mmengine's EMA with ``update_buffers=True`` writes its averages into the tensors of a state_dict.
        """
        whole = self.centres._base
        if whole is None or whole[2:].data_ptr() != self.sizes.data_ptr():  # new, moved or copied
            whole = torch.cat([self.centres, self.sizes.detach()])
            self.centres, self.sizes.data = whole[:2], whole[2:]
        return whole

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        if (weight := state_dict.pop(f'{prefix}weight', None)) is not None:
            state_dict[f'{prefix}centres'], state_dict[f'{prefix}sizes'] = weight.t().tensor_split([2])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
