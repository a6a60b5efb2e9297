"""Denoising queries (DN-DETR, arXiv:2203.01305, section 4; contrastive: DINO, arXiv:2203.03605, section 3.3)."""

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdet_ddetr.registry import MODELS
from mmdet_ddetr.task_modules import Targets

from .boxes import inverse_sigmoid


@MODELS.register_module()
class DenoisingQueries(BaseModule):
    """Ground truth with noise, as queries that learn to undo it: they need no matching, so they teach from step one.

    Every target gives two queries a group: a positive one, which is to find its target again, and a negative one whose
    box is further off, which is to say "nothing". mmdet's ``CdnQueryGenerator`` does the same, takes the same arguments
    and has the same state_dict, but waits for the accelerator several times a step.

    Args:
        num_classes: classes without background.
        embed_dims: channels C of the queries.
        label_noise_scale: half of it is the share of labels replaced by a random class.
        box_noise_scale: corners move by up to half of it times the box's size, a negative query's by half to all of it.
        contrastive: give negative queries, too. False: DN-DETR's form, where a positive query's centre moves by up to
            ``box_noise_scale`` times half of the box's size, and its size changes by up to as much of itself.
        indicator: the last channel of the contents says which queries are denoising ones, 1, and which are not, 0. The
            matching queries of a detector without contents of its own then start from a vector for "no label known",
            the last of the label embedding (DN-DETR, section 4.4).
        group_cfg: ``num_groups`` groups if not ``dynamic``, else as many as ``num_dn_queries`` positive queries fill.
            Of an image with more targets than that, so many are drawn each time: mmdet takes all, and a step on an
            image of 4,000 boxes takes half a minute on a CPU.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        label_noise_scale: float = 0.5,
        box_noise_scale: float = 1.0,
        contrastive: bool = True,
        indicator: bool = False,
        group_cfg: dict = dict(dynamic=True, num_dn_queries=100),
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.is_dynamic = group_cfg.get('dynamic', True)
        self.num_positives = group_cfg.get('num_dn_queries', 100)  # if dynamic: in all groups of an image, at most
        self.fixed_groups = group_cfg.get('num_groups')  # if not
        if not self.is_dynamic and not self.fixed_groups:
            raise ValueError(f'group_cfg must name num_groups, 1 or more, where dynamic is False; got {group_cfg}')
        self.num_classes = num_classes
        self.embed_dims = embed_dims
        self.label_noise_scale = label_noise_scale
        self.box_noise_scale = box_noise_scale
        self.contrastive = contrastive
        self.indicator = indicator
        self.label_embedding = nn.Embedding(num_classes + indicator, embed_dims - indicator)

    def num_groups(self, num_targets: int) -> int:
        """Groups for images of at most so many targets; one of nothing where there are none."""
        if not self.is_dynamic:
            return self.fixed_groups
        return max(self.num_positives // num_targets, 1) if num_targets else 1

    def choose(self, targets: Targets) -> Targets:
        """Those that denoising queries are made of."""
        return targets.at_most(self.num_positives) if self.is_dynamic else targets

    def forward(self, targets: Targets) -> tuple[Tensor, Tensor, int]:
        """Noisy labels as content and noisy boxes as references.

        Returns:
            content [B, Q, C] and boxes [B, Q, 4], (cx, cy, w, h) normalised by the unpadded image, where Q is groups x
            kinds (positive, negative) x most targets of an image; and the number of groups. Where an image has fewer
            targets, the content is zero and the box half of the image.
        """
        B, T = len(targets.counts), max(targets.counts)
        G = self.num_groups(T)
        kinds = 1 + self.contrastive
        labels = self.noisy_labels(targets.labels.expand(G, kinds, -1))
        boxes = self.noisy_boxes(targets.boxes.expand(G, kinds, -1, -1))
        content = boxes.new_zeros(G, kinds, B, T, self.embed_dims)
        references = boxes.new_full((G, kinds, B, T, 4), 0.5)
        image, index = targets.image, targets.index_in_image
        embedding = self.label_embedding(labels)
        if self.indicator:
            embedding = with_indicator(embedding, denoising=True)
        content[:, :, image, index] = embedding.to(content.dtype)
        references[:, :, image, index] = boxes
        content, references = (x.permute(2, 0, 1, 3, 4).flatten(1, 3) for x in (content, references))
        return content, references, G

    def content_without_label(self) -> Tensor:  # [C]
        """What a query that is no denoising one starts from; with ``indicator`` alone."""
        return with_indicator(self.label_embedding.weight[-1], denoising=False)

    def noisy_labels(self, labels: Tensor) -> Tensor:
        """Replace a share of the labels by random ones, which may be the same."""
        chosen = torch.rand(labels.shape, device=labels.device) < self.label_noise_scale / 2
        return torch.where(chosen, torch.randint_like(labels, self.num_classes), labels)

    def noisy_boxes(self, boxes: Tensor) -> Tensor:  # [G, kinds, T, 4] (cx, cy, w, h) -> the same
        noisy = self.moved_corners(boxes) if self.contrastive else self.moved_centres(boxes)
        return inverse_sigmoid(noisy, eps=1e-3).sigmoid()  # off the borders, and of some size: both can be refined

    def moved_centres(self, boxes: Tensor) -> Tensor:
        """Move the centre within the box, and change the size."""
        size = boxes[..., 2:]
        change = torch.rand(boxes.shape, dtype=boxes.dtype, device=boxes.device) * 2 - 1
        return (boxes + change * torch.cat([size / 2, size], -1) * self.box_noise_scale).clamp(0, 1)

    def moved_corners(self, boxes: Tensor) -> Tensor:
        """Move each corner of positive queries ([:, 0]) a little, of negative ones ([:, 1]) further."""
        sign = torch.randint(0, 2, boxes.shape, dtype=boxes.dtype, device=boxes.device) * 2 - 1
        distance = torch.rand(boxes.shape, dtype=boxes.dtype, device=boxes.device)
        distance[:, 1] += 1
        size = boxes[..., 2:].repeat(1, 1, 1, 2)
        corners = bbox_cxcywh_to_xyxy(boxes) + sign * distance * size * self.box_noise_scale / 2
        return bbox_xyxy_to_cxcywh(corners.clamp(0, 1))


def with_indicator(content: Tensor, denoising: bool) -> Tensor:  # [..., C - 1] -> [..., C]
    """Contents and the channel that says whose they are."""
    return F.pad(content, (0, 1), value=float(denoising))
