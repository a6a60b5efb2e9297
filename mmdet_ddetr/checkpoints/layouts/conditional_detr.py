"""Conditional DETR in the code bases that have it."""

from ..key_map import KeyMap
from .code_bases import (
    MMDET_HEAD,
    OFFICIAL,
    OWN_HEAD,
    same_on_both_sides,
)
from .detr import HEAD
from .layout import Layout
from .masks import MASKS

# The official decoder layer holds the projections of both attentions itself, sa_ and ca_.
OFFICIAL_DECODER = """
transformer.encoder.layers.{i}.self_attn.**            encoder.layers.{i}.self_attn.attn.**
transformer.decoder.layers.{i}.sa_qcontent_proj.*      decoder.layers.{i}.self_attn.qcontent_proj.*
transformer.decoder.layers.{i}.sa_qpos_proj.*          decoder.layers.{i}.self_attn.qpos_proj.*
transformer.decoder.layers.{i}.sa_kcontent_proj.*      decoder.layers.{i}.self_attn.kcontent_proj.*
transformer.decoder.layers.{i}.sa_kpos_proj.*          decoder.layers.{i}.self_attn.kpos_proj.*
transformer.decoder.layers.{i}.sa_v_proj.*             decoder.layers.{i}.self_attn.v_proj.*
transformer.decoder.layers.{i}.self_attn.out_proj.*    decoder.layers.{i}.self_attn.out_proj.*
transformer.decoder.layers.{i}.ca_qcontent_proj.*      decoder.layers.{i}.cross_attn.qcontent_proj.*
transformer.decoder.layers.{i}.ca_qpos_proj.*          decoder.layers.{i}.cross_attn.qpos_proj.*
transformer.decoder.layers.{i}.ca_kcontent_proj.*      decoder.layers.{i}.cross_attn.kcontent_proj.*
transformer.decoder.layers.{i}.ca_kpos_proj.*          decoder.layers.{i}.cross_attn.kpos_proj.*
transformer.decoder.layers.{i}.ca_v_proj.*             decoder.layers.{i}.cross_attn.v_proj.*
transformer.decoder.layers.{i}.ca_qpos_sine_proj.*     decoder.layers.{i}.cross_attn.qpos_sine_proj.*
transformer.decoder.layers.{i}.cross_attn.out_proj.*   decoder.layers.{i}.cross_attn.out_proj.*
transformer.decoder.layers.{i}.norm1.*                 decoder.layers.{i}.norms.0.*
transformer.decoder.layers.{i}.norm2.*                 decoder.layers.{i}.norms.1.*
transformer.decoder.norm.*                             decoder.post_norm.*
transformer.decoder.query_scale.layers.{k}.*           decoder.query_scale.layers.{k}.*
transformer.decoder.ref_point_head.layers.{k}.*        decoder.ref_point_head.layers.{k}.*
"""
OWN = same_on_both_sides(OFFICIAL, OFFICIAL_DECODER, HEAD.partition('class_embed')[0])

LAYOUTS = (
    Layout('mmdet_ddetr', 'ConditionalDETR', KeyMap(OWN, OWN_HEAD, same_on_both_sides(MASKS))),
    Layout('mmdet', 'ConditionalDETR', KeyMap(OWN, MMDET_HEAD), one_head=True),
    Layout('official', 'ConditionalDETR', KeyMap(OFFICIAL, OFFICIAL_DECODER, HEAD), coco91=True, one_head=True),
)
