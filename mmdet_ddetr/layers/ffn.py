"""The feed-forward network of a transformer layer."""

from mmcv.cnn.bricks.transformer import FFN as MMCVFFN
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS


@MODELS.register_module()
class FFN(MMCVFFN):
    """mmcv's FFN, which keeps and copies less in training. Same arguments, state_dict and results.

    mmcv's ReLU works in place on what a linear layer gives for [B, Q, C], a view of a matrix, and for views autograd
    copies the hidden layer; here it is a matrix from the start. And dropout comes before ReLU, with which it commutes:
    what ReLU keeps for its gradient is then the very tensor that the next linear layer keeps.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for hidden in self.layers[:-2]:
            _, activation, dropout = hidden
            if isinstance(activation, nn.ReLU):
                hidden[1], hidden[2] = dropout, activation

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """x, identity [..., C]; identity is what the residual adds, None: x."""
        identity = x if identity is None else identity
        return super().forward(x.flatten(0, -2), identity.flatten(0, -2)).view(x.shape)
