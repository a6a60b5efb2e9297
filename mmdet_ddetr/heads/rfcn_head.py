"""R-FCN, https://arxiv.org/abs/1605.06409, also with bins that move (DCN, https://arxiv.org/abs/1703.06211).

All layers work on the whole map; what is left to do for a RoI is to read its bins from score maps and to average them.
Source: https://github.com/msracver/Deformable-ConvNets, ``rfcn/symbols/resnet_v1_101_rfcn_dcn.py``.
"""

import torch.nn.functional as F
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor, nn

from mmdet_ddetr.layers import DeformPSRoIPoolPack
from mmdet_ddetr.layers.counts import check_counts
from mmdet_ddetr.registry import MODELS


@MODELS.register_module()
class RFCNRoIHead(StandardRoIHead):
    """Puts ``shared_head``, the last stage of the backbone, on the map, and lets the box head pool from it.

    Args:
        bbox_head (dict): ``RFCNHead``.
        shared_head (dict, optional): what comes between the proposals' features and the score maps.
        **kwargs: as for mmdet's ``StandardRoIHead``; there is no RoI extractor.

    Raises:
        ValueError: there is an extractor or a box head of another kind, or the backbone gives more than one map.
    """

    def init_bbox_head(self, bbox_roi_extractor, bbox_head):
        if bbox_roi_extractor is not None:
            raise ValueError(f'bbox_roi_extractor must be None: RFCNHead pools itself; got {bbox_roi_extractor}')
        self.bbox_head = MODELS.build(bbox_head)
        if not isinstance(self.bbox_head, RFCNHead):
            raise ValueError(f'bbox_head must be an RFCNHead, which pools itself; got {type(self.bbox_head).__name__}')

    def forward(self, x, rpn_results_list, batch_data_samples=None):
        """See mmdet; ``x`` holds one map here and in ``loss`` and ``predict``."""
        return super().forward(self._shared(x), rpn_results_list, batch_data_samples)

    def loss(self, x, rpn_results_list, batch_data_samples):
        return super().loss(self._shared(x), rpn_results_list, batch_data_samples)

    def predict(self, x, rpn_results_list, batch_data_samples, rescale=False):
        return super().predict(self._shared(x), rpn_results_list, batch_data_samples, rescale)

    def _shared(self, x: tuple[Tensor]) -> tuple[Tensor]:
        if len(x) != 1:
            raise ValueError(
                f'out_indices of the backbone must name one stage, which R-FCN works on; got {len(x)} maps'
            )
        return (self.shared_head(x[0]),) if self.with_shared_head else x

    def _bbox_forward(self, x: tuple[Tensor], rois: Tensor) -> dict:
        (features,) = x
        cls_score, bbox_pred = self.bbox_head(features, rois)
        return dict(cls_score=cls_score, bbox_pred=bbox_pred, bbox_feats=features)


@MODELS.register_module()
class RFCNHead(BBoxHead):
    """Scores and boxes of RoIs, the averages of what their bins read from position-sensitive maps.

    Boxes are of no class: the official code, too, has one set of coordinates for all (and one of the background).

    Args:
        in_channels (int): Channels of the features.
        feat_channels (int): Channels of the 1 x 1 convolution between them and the maps.
        deformable (bool): Whether bins move; those of each class move on their own, those of the boxes together.
        stride (int): Of the features.
        num_classes (int): Foreground classes; the background is one more.
        **kwargs: ``bbox_coder``, ``loss_cls`` and ``loss_bbox`` of mmdet's ``BBoxHead``.
    """

    def __init__(self, in_channels=2048, feat_channels=1024, deformable=True, stride=16, num_classes=80, **kwargs):
        check_counts(stride=stride)
        # one channel: of the layers of mmdet's head none is used
        super().__init__(in_channels=1, roi_feat_size=1, num_classes=num_classes, reg_class_agnostic=True, **kwargs)
        del self.fc_cls, self.fc_reg
        self.init_cfg = None
        self.conv = nn.Conv2d(in_channels, feat_channels, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)
        classes = num_classes + 1
        scale = dict(spatial_scale=1 / stride)
        self.cls_pool = DeformPSRoIPoolPack(feat_channels, classes, classes if deformable else 0, **scale)
        self.reg_pool = DeformPSRoIPoolPack(feat_channels, 4, 1 if deformable else 0, **scale)

    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, H, W], [R, 5]
        """Return the logits [R, num_classes + 1], the background last, and the boxes' deltas [R, 4]."""
        x = F.relu(self.conv(x))
        return tuple(pool(x, rois).mean((2, 3)) for pool in (self.cls_pool, self.reg_pool))
