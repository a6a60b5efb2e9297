"""Conditional DETR in the code bases that have it."""

from ..key_map import KeyMap
from .code_bases import (
    DETREX,
    HUGGINGFACE,
    IN_MEMORY_SINCE_5,
    MMDET_HEAD,
    OFFICIAL,
    OWN_HEAD,
    same_on_both_sides,
)
from .detr import HEAD
from .layout import Layout
from .masks import MASKS

# The official decoder layer holds the projections of both attentions itself, sa_ and ca_.
CONDITIONAL_SELF_ATTENTION = """
transformer.decoder.layers.{i}.sa_qcontent_proj.*      decoder.layers.{i}.self_attn.qcontent_proj.*
transformer.decoder.layers.{i}.sa_qpos_proj.*          decoder.layers.{i}.self_attn.qpos_proj.*
transformer.decoder.layers.{i}.sa_kcontent_proj.*      decoder.layers.{i}.self_attn.kcontent_proj.*
transformer.decoder.layers.{i}.sa_kpos_proj.*          decoder.layers.{i}.self_attn.kpos_proj.*
transformer.decoder.layers.{i}.sa_v_proj.*             decoder.layers.{i}.self_attn.v_proj.*
transformer.decoder.layers.{i}.self_attn.out_proj.*    decoder.layers.{i}.self_attn.out_proj.*
"""
OFFICIAL_DECODER = CONDITIONAL_SELF_ATTENTION
OFFICIAL_DECODER += """
transformer.encoder.layers.{i}.self_attn.**            encoder.layers.{i}.self_attn.attn.**
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
# detrex and MMDetection hold them in the attentions.
DETREX_ATTENTIONS = """
transformer.encoder.layers.{i}.attentions.0.attn.**                encoder.layers.{i}.self_attn.attn.**
transformer.decoder.layers.{i}.attentions.0.query_content_proj.*   decoder.layers.{i}.self_attn.qcontent_proj.*
transformer.decoder.layers.{i}.attentions.0.query_pos_proj.*       decoder.layers.{i}.self_attn.qpos_proj.*
transformer.decoder.layers.{i}.attentions.0.key_content_proj.*     decoder.layers.{i}.self_attn.kcontent_proj.*
transformer.decoder.layers.{i}.attentions.0.key_pos_proj.*         decoder.layers.{i}.self_attn.kpos_proj.*
transformer.decoder.layers.{i}.attentions.0.value_proj.*           decoder.layers.{i}.self_attn.v_proj.*
transformer.decoder.layers.{i}.attentions.0.out_proj.*             decoder.layers.{i}.self_attn.out_proj.*
transformer.decoder.layers.{i}.attentions.1.query_content_proj.*   decoder.layers.{i}.cross_attn.qcontent_proj.*
transformer.decoder.layers.{i}.attentions.1.query_pos_proj.*       decoder.layers.{i}.cross_attn.qpos_proj.*
transformer.decoder.layers.{i}.attentions.1.query_pos_sine_proj.*  decoder.layers.{i}.cross_attn.qpos_sine_proj.*
transformer.decoder.layers.{i}.attentions.1.key_content_proj.*     decoder.layers.{i}.cross_attn.kcontent_proj.*
transformer.decoder.layers.{i}.attentions.1.key_pos_proj.*         decoder.layers.{i}.cross_attn.kpos_proj.*
transformer.decoder.layers.{i}.attentions.1.value_proj.*           decoder.layers.{i}.cross_attn.v_proj.*
transformer.decoder.layers.{i}.attentions.1.out_proj.*             decoder.layers.{i}.cross_attn.out_proj.*
transformer.decoder.post_norm_layer.*                              decoder.post_norm.*
"""
DETREX_CONDITIONAL_DETR = DETREX_ATTENTIONS
DETREX_CONDITIONAL_DETR += """
query_embed.weight                                                 query_embedding.weight
transformer.decoder.query_scale.layers.{k}.*                       decoder.query_scale.layers.{k}.*
transformer.decoder.ref_point_head.layers.{k}.*                    decoder.ref_point_head.layers.{k}.*
"""
# transformers has the official names of the projections in its files.
HUGGINGFACE_CONDITIONAL_DETR = """
model.encoder.layers.{i}.self_attn.[qkv]_proj.weight  encoder.layers.{i}.self_attn.attn.in_proj_weight
model.encoder.layers.{i}.self_attn.[qkv]_proj.bias    encoder.layers.{i}.self_attn.attn.in_proj_bias
model.encoder.layers.{i}.self_attn.out_proj.*         encoder.layers.{i}.self_attn.attn.out_proj.*
model.decoder.layers.{i}.sa_qcontent_proj.*           decoder.layers.{i}.self_attn.qcontent_proj.*
model.decoder.layers.{i}.sa_qpos_proj.*               decoder.layers.{i}.self_attn.qpos_proj.*
model.decoder.layers.{i}.sa_kcontent_proj.*           decoder.layers.{i}.self_attn.kcontent_proj.*
model.decoder.layers.{i}.sa_kpos_proj.*               decoder.layers.{i}.self_attn.kpos_proj.*
model.decoder.layers.{i}.sa_v_proj.*                  decoder.layers.{i}.self_attn.v_proj.*
model.decoder.layers.{i}.self_attn.out_proj.*         decoder.layers.{i}.self_attn.out_proj.*
model.decoder.layers.{i}.ca_qcontent_proj.*           decoder.layers.{i}.cross_attn.qcontent_proj.*
model.decoder.layers.{i}.ca_qpos_proj.*               decoder.layers.{i}.cross_attn.qpos_proj.*
model.decoder.layers.{i}.ca_kcontent_proj.*           decoder.layers.{i}.cross_attn.kcontent_proj.*
model.decoder.layers.{i}.ca_kpos_proj.*               decoder.layers.{i}.cross_attn.kpos_proj.*
model.decoder.layers.{i}.ca_v_proj.*                  decoder.layers.{i}.cross_attn.v_proj.*
model.decoder.layers.{i}.ca_qpos_sine_proj.*          decoder.layers.{i}.cross_attn.qpos_sine_proj.*
model.decoder.layers.{i}.encoder_attn.out_proj.*      decoder.layers.{i}.cross_attn.out_proj.*
model.decoder.layernorm.*                             decoder.post_norm.*
model.decoder.query_scale.layers.{k}.*                decoder.query_scale.layers.{k}.*
model.decoder.ref_point_head.layers.{k}.*             decoder.ref_point_head.layers.{k}.*
model.input_projection.*                              neck.convs.0.conv.*
class_labels_classifier.*                             bbox_head.cls_branches.0.*
bbox_predictor.layers.0.*                             bbox_head.reg_branches.0.0.*
bbox_predictor.layers.1.*                             bbox_head.reg_branches.0.2.*
bbox_predictor.layers.2.*                             bbox_head.reg_branches.0.4.*
"""
CONDITIONAL_IN_MEMORY_SINCE_5 = {
    r'(decoder\.layers\.\d+)\.self_attn\.([qk])_(content|pos)_proj\.': r'\1.sa_\2\3_proj.',
    r'(decoder\.layers\.\d+)\.self_attn\.v_proj\.': r'\1.sa_v_proj.',
    r'(decoder\.layers\.\d+)\.encoder_attn\.([qk])_(content|pos|pos_sine)_proj\.': r'\1.ca_\2\3_proj.',
    r'(decoder\.layers\.\d+)\.encoder_attn\.v_proj\.': r'\1.ca_v_proj.',
    **IN_MEMORY_SINCE_5,
}
OWN = same_on_both_sides(OFFICIAL, OFFICIAL_DECODER, HEAD.partition('class_embed')[0])

LAYOUTS = (
    Layout('mmdet_ddetr', 'ConditionalDETR', KeyMap(OWN, OWN_HEAD, same_on_both_sides(MASKS))),
    Layout('mmdet', 'ConditionalDETR', KeyMap(OWN, MMDET_HEAD), one_head=True),
    Layout('official', 'ConditionalDETR', KeyMap(OFFICIAL, OFFICIAL_DECODER, HEAD), coco91=True, one_head=True),
    Layout(
        'huggingface',
        'ConditionalDETR',
        KeyMap(HUGGINGFACE, HUGGINGFACE_CONDITIONAL_DETR),
        coco91=True,
        one_head=True,
        spellings=CONDITIONAL_IN_MEMORY_SINCE_5,
    ),
    Layout('detrex', 'ConditionalDETR', KeyMap(DETREX, DETREX_CONDITIONAL_DETR, HEAD), one_head=True),
)
