"""MMDetection 3.x. Its Deformable DETR has our keys; the head of its DETR has a single class and box branch."""

from ..key_map import KeyMap
from .layout import Layout
from .native import BACKBONE, DEFORMABLE_DETR, DETR_BODY

DETR_HEAD = """
bbox_head.fc_cls.*              bbox_head.cls_branches.0.*
bbox_head.reg_ffn.layers.0.0.*  bbox_head.reg_branches.0.0.*
bbox_head.reg_ffn.layers.1.*    bbox_head.reg_branches.0.2.*
bbox_head.fc_reg.*              bbox_head.reg_branches.0.4.*
"""
LAYOUTS = (
    Layout('mmdet', 'DeformableDETR', KeyMap(BACKBONE, DEFORMABLE_DETR)),
    Layout('mmdet', 'DETR', KeyMap(BACKBONE, DETR_BODY, DETR_HEAD), one_head=True),
)
