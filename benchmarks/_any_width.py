"""MMDetection's two-stage DETRs with any number of channels.

Their sine encodings have 128 numbers a coordinate whatever the width, and the layer that reads them expects 2 C, which
agrees at C = 256 alone. Here that layer takes what the encodings have; nothing else differs.
"""

from mmdet.models import DINO, DeformableDETR
from mmdet.models.layers import MLP
from mmdet.registry import MODELS
from torch import nn

ENCODED = 4 * 128  # numbers of a box


@MODELS.register_module()
class AnyWidthDINO(DINO):
    def _init_layers(self):
        super()._init_layers()
        self.decoder.ref_point_head = MLP(ENCODED, self.embed_dims, self.embed_dims, 2)


@MODELS.register_module()
class AnyWidthDeformableDETR(DeformableDETR):
    def _init_layers(self):
        super()._init_layers()
        self.pos_trans_fc = nn.Linear(ENCODED, self.pos_trans_fc.out_features)
