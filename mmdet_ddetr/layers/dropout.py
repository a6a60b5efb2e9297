"""Dropout that keeps no mask, in place of PyTorch's."""

from torch import Tensor, nn

from mmdet_ddetr.ops import dropout


class Dropout(nn.Dropout):
    """``nn.Dropout`` by ``mmdet_ddetr.ops.dropout``; with ``inplace=True``, as PyTorch does it."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.inplace else dropout(input, self.p, self.training)


def replace_dropout(module: nn.Module) -> None:
    """Let the ``nn.Dropout`` in a module, mmcv's own included, be ``Dropout``; subclasses with another forward stay.

    They remain the objects that they are, with mode, hooks and p.
    """
    for child in module.modules():
        if type(child).forward is nn.Dropout.forward:
            child.__class__ = Dropout
