"""SAM-DETR in the code bases that have it."""

from ..key_map import KeyMap
from .code_bases import OFFICIAL, OWN_HEAD, same_on_both_sides
from .conditional_detr import CONDITIONAL_SELF_ATTENTION
from .layout import Layout
from .masks import MASKS

# The encoder of one level is dense, that of several is deformable. The neck has norms in part.
OFFICIAL_BODY = CONDITIONAL_SELF_ATTENTION
OFFICIAL_BODY += """
transformer.encoder.layers.{i}.self_attn.in_proj_weight  encoder.layers.{i}.self_attn.attn.in_proj_weight
transformer.encoder.layers.{i}.self_attn.in_proj_bias    encoder.layers.{i}.self_attn.attn.in_proj_bias
transformer.encoder.layers.{i}.self_attn.out_proj.*      encoder.layers.{i}.self_attn.attn.out_proj.*
transformer.encoder.layers.{i}.self_attn.**              encoder.layers.{i}.self_attn.**
transformer.level_embed                                  level_embed
input_proj.{l}.0.*                                       neck.convs.{l}.conv.*
input_proj.{l}.1.*                                       neck.convs.{l}.gn.*
transformer.decoder.layers.{i}.ca_qcontent_proj.*        decoder.layers.{i}.cross_attn.qcontent_proj.*
transformer.decoder.layers.{i}.ca_kcontent_proj.*        decoder.layers.{i}.cross_attn.kcontent_proj.*
transformer.decoder.layers.{i}.ca_v_proj.*               decoder.layers.{i}.cross_attn.v_proj.*
transformer.decoder.layers.{i}.ca_qpos_sine_proj.layers.{k}.*  decoder.layers.{i}.cross_attn.qpos_sine_proj.layers.{k}.*
transformer.decoder.layers.{i}.ca_kpos_sine_proj.layers.{k}.*  decoder.layers.{i}.cross_attn.kpos_sine_proj.layers.{k}.*
transformer.decoder.layers.{i}.cross_attn.out_proj.*     decoder.layers.{i}.cross_attn.out_proj.*
transformer.decoder.layers.{i}.point1.0.*                decoder.layers.{i}.cross_attn.aligner.squeeze.*
transformer.decoder.layers.{i}.point2.{k}.*              decoder.layers.{i}.cross_attn.aligner.points.{k}.*
transformer.decoder.layers.{i}.attn1.*                   decoder.layers.{i}.cross_attn.aligner.content_gate.*
transformer.decoder.layers.{i}.attn2.*                   decoder.layers.{i}.cross_attn.aligner.position_gate.*
transformer.decoder.layers.{i}.norm1.*                   decoder.layers.{i}.norms.0.*
transformer.decoder.layers.{i}.norm2.*                   decoder.layers.{i}.norms.1.*
"""
OFFICIAL_HEAD = """
class_embed.{o}.*                  bbox_head.cls_branches.{o}.*
bbox_embed.{o}.layers.0.*          bbox_head.reg_branches.{o}.0.*
bbox_embed.{o}.layers.1.*          bbox_head.reg_branches.{o}.2.*
bbox_embed.{o}.layers.2.*          bbox_head.reg_branches.{o}.4.*
transformer.decoder.bbox_embed.**  = bbox_embed.**  if box_refine
"""

LAYOUTS = (
    Layout('mmdet_ddetr', 'SAMDETR', KeyMap(same_on_both_sides(OFFICIAL, OFFICIAL_BODY, MASKS), OWN_HEAD)),
    Layout('official', 'SAMDETR', KeyMap(OFFICIAL, OFFICIAL_BODY, OFFICIAL_HEAD), coco91=True),
)
