"""A mask for every detection of a set (DETR, section 4.4; official ``models/segmentation.py``)."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS

FOCAL_LOSS = dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
DICE_LOSS = dict(type='mmdet.DiceLoss', naive_dice=True, eps=1.0, loss_weight=1.0)


@MODELS.register_module()
class MaskHead(BaseModule):
    """Where a query attends in the encoder's memory, upsampled with the backbone's finer maps to a mask of stride 4.

    Args:
        in_channels: channels of the backbone's C4, C3 and C2.
        embed_dims: channels C of queries, memory and the projected C5.
        num_heads: attention maps M per query.
        loss_mask, loss_dice: configs of the losses of a pixel and of a mask; any that give unreduced values on request.
    """

    def __init__(
        self,
        in_channels: list[int],
        embed_dims: int = 256,
        num_heads: int = 8,
        loss_mask: dict = FOCAL_LOSS,
        loss_dice: dict = DICE_LOSS,
        init_cfg: dict | None = dict(
            type='Kaiming', layer='Conv2d', a=1, mode='fan_in', nonlinearity='leaky_relu', distribution='uniform'
        ),
    ):
        super().__init__(init_cfg)
        self.attention = AttentionMap(embed_dims, num_heads)
        widths = [embed_dims + num_heads] * 2 + [embed_dims // 2**i for i in range(1, 5)]
        self.convs = ModuleList(
            nn.Sequential(nn.Conv2d(C_in, C_out, 3, padding=1), nn.GroupNorm(min(8, C_out), C_out), nn.ReLU())
            for C_in, C_out in zip(widths, widths[1:])
        )
        self.laterals = ModuleList(nn.Conv2d(C_in, C_out, 1) for C_in, C_out in zip(in_channels, widths[2:]))
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.loss_mask = MODELS.build(loss_mask)
        self.loss_dice = MODELS.build(loss_dice)

    def forward(
        self,
        query: Tensor,  # [N, C] states of the last decoder layer, of all images
        image: Tensor,  # [N] index of the image that each belongs to
        source: Tensor,  # [B, C, H, W] the neck's map of C5
        memory: Tensor,  # [B, C, H, W] the encoder's
        mask: Tensor | None,  # [B, H, W], True = padding
        finer: tuple[Tensor, ...],  # C4, C3, C2 of the backbone
    ) -> Tensor:  # [N, H/4, W/4] of the padded input
        """Logits of each query's mask."""
        x = torch.cat([source[image], self.attention(query, image, memory, mask)], 1)
        x = self.convs[1](self.convs[0](x))
        for conv, lateral, feat in zip(self.convs[2:], self.laterals, finer, strict=True):
            x = conv(lateral(feat)[image] + F.interpolate(x, size=feat.shape[-2:], mode='nearest'))
        return self.out(x).squeeze(1)

    def loss(
        self,
        logits: Tensor,  # [N, h, w]
        targets: Tensor,  # [N, H, W], 1 = object
        avg_factor: Tensor,
    ) -> dict[str, Tensor]:
        """Focal loss, averaged over a mask's pixels, and dice loss, both at the resolution of the input, in fp32."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = F.interpolate(logits[:, None].float(), size=targets.shape[-2:], mode='bilinear').flatten(1)
            targets = targets.flatten(1).float()
            loss_mask = self.loss_mask(logits, targets, reduction_override='none').mean(1)
            loss_dice = self.loss_dice(logits, targets, reduction_override='none')
            return dict(loss_mask=loss_mask.sum() / avg_factor, loss_dice=loss_dice.sum() / avg_factor)

    @staticmethod
    def without_padding(
        logits: Tensor,  # [N, H/4, W/4] of one image
        meta: dict,
    ) -> Tensor:  # [N, h, w]
        """Logits in the pixels of the image that the network saw."""
        logits = F.interpolate(logits[None].float(), size=meta['batch_input_shape'], mode='bilinear')[0]
        h, w = meta['img_shape'][:2]
        return logits[:, :h, :w]

    @staticmethod
    def predict(
        logits: Tensor,  # [N, h, w] without padding
        size: tuple[int, int],
    ) -> Tensor:  # [N, *size] bool
        """Masks of probabilities above 0.5, in another size, say the original image's."""
        return F.interpolate((logits[None] > 0).float(), size=size, mode='nearest')[0].bool()


class AttentionMap(BaseModule):
    """Where queries attend in a feature map: weights that sum to 1 over all heads and cells together."""

    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__(dict(type='Xavier', layer='Linear', distribution='uniform'))
        self.num_heads = num_heads
        self.query_proj = nn.Linear(embed_dims, embed_dims)
        self.key_proj = nn.Linear(embed_dims, embed_dims)

    def forward(
        self,
        query: Tensor,  # [N, C]
        image: Tensor,  # [N]
        memory: Tensor,  # [B, C, H, W]
        mask: Tensor | None,  # [B, H, W], True = padding
    ) -> Tensor:  # [N, M, H, W]
        M = self.num_heads
        query = self.query_proj(query).unflatten(1, (M, -1))  # [N, M, D]
        key = self.key_proj(memory.movedim(1, -1)).unflatten(-1, (M, -1))  # [B, H, W, M, D]
        logits = torch.einsum('nmd,nhwmd->nmhw', query * query.shape[-1] ** -0.5, key[image])
        if mask is not None:
            logits = logits.masked_fill(mask[image, None], float('-inf'))
        return logits.flatten(1).softmax(1).view_as(logits)
