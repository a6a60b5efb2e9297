"""This package's own keys, which are MMDetection 3.x's but for the head of DETR."""

from ..key_map import KeyMap
from . import official
from .layout import Layout
from .masks import MASKS
from .resnet import torchvision


def same_on_both_sides(*tables: str) -> str:
    """A table that maps our names of other tables to themselves."""
    rows = [line.split() for table in tables for line in table.splitlines()]
    return '\n'.join(f'{row[1]}  {row[1]}' for row in rows if len(row) == 2)


BACKBONE = torchvision('backbone.')
BEYOND_THE_PAPER = 'dn_query_generator.label_embedding.*  dn_query_generator.label_embedding.*'
DEFORMABLE_DETR = same_on_both_sides(official.BODY, official.DEFORMABLE_DETR) + '\n' + BEYOND_THE_PAPER
DETR_BODY = same_on_both_sides(official.BODY, official.DETR)
DETR_HEAD = """
bbox_head.cls_branches.{o}.*  bbox_head.cls_branches.{o}.*
bbox_head.reg_branches.{o}.**  bbox_head.reg_branches.{o}.**
"""
NAME = 'mmdet_ddetr'
LAYOUTS = (
    Layout(NAME, 'DeformableDETR', KeyMap(BACKBONE, DEFORMABLE_DETR, same_on_both_sides(MASKS))),
    Layout(NAME, 'DETR', KeyMap(BACKBONE, DETR_BODY, DETR_HEAD, same_on_both_sides(MASKS))),
)
