"""DETR in the code bases that have it."""

from ..key_map import KeyMap
from .code_bases import (
    DETREX,
    DETREX_SELF_ATTENTION,
    HUGGINGFACE,
    HUGGINGFACE_SELF_ATTENTION,
    IN_MEMORY_SINCE_5,
    MMDET2,
    MMDET2_FIRST_RELEASES,
    MMDET2_SELF_ATTENTION,
    MMDET_HEAD,
    OFFICIAL,
    OFFICIAL_SELF_ATTENTION,
    OWN_HEAD,
    same_on_both_sides,
)
from .layout import Layout
from .masks import MASKS

# Names that detrex has kept, as have the codes that descend from the official one.
HEAD = """
input_proj.*                                      neck.convs.0.conv.*
class_embed.*                                     bbox_head.cls_branches.0.*
bbox_embed.layers.0.*                             bbox_head.reg_branches.0.0.*
bbox_embed.layers.1.*                             bbox_head.reg_branches.0.2.*
bbox_embed.layers.2.*                             bbox_head.reg_branches.0.4.*
"""
OFFICIAL_DETR = OFFICIAL_SELF_ATTENTION
OFFICIAL_DETR += """
transformer.encoder.layers.{i}.self_attn.**        encoder.layers.{i}.self_attn.attn.**
transformer.decoder.layers.{i}.multihead_attn.**   decoder.layers.{i}.cross_attn.attn.**
transformer.decoder.layers.{i}.norm1.*            decoder.layers.{i}.norms.0.*
transformer.decoder.layers.{i}.norm2.*            decoder.layers.{i}.norms.1.*
transformer.decoder.norm.*                        decoder.post_norm.*
"""
HUGGINGFACE_DETR = HUGGINGFACE_SELF_ATTENTION
HUGGINGFACE_DETR += """
model.encoder.layers.{i}.self_attn.[qkv]_proj.weight     encoder.layers.{i}.self_attn.attn.in_proj_weight
model.encoder.layers.{i}.self_attn.[qkv]_proj.bias       encoder.layers.{i}.self_attn.attn.in_proj_bias
model.encoder.layers.{i}.self_attn.out_proj.*            encoder.layers.{i}.self_attn.attn.out_proj.*
model.decoder.layers.{i}.encoder_attn.[qkv]_proj.weight  decoder.layers.{i}.cross_attn.attn.in_proj_weight
model.decoder.layers.{i}.encoder_attn.[qkv]_proj.bias    decoder.layers.{i}.cross_attn.attn.in_proj_bias
model.decoder.layers.{i}.encoder_attn.out_proj.*         decoder.layers.{i}.cross_attn.attn.out_proj.*
model.decoder.layernorm.*                                decoder.post_norm.*
model.input_projection.*                                 neck.convs.0.conv.*
class_labels_classifier.*                                bbox_head.cls_branches.0.*
bbox_predictor.layers.0.*                                bbox_head.reg_branches.0.0.*
bbox_predictor.layers.1.*                                bbox_head.reg_branches.0.2.*
bbox_predictor.layers.2.*                                bbox_head.reg_branches.0.4.*
"""
DETREX_DETR = DETREX_SELF_ATTENTION
DETREX_DETR += """
transformer.encoder.layers.{i}.attentions.0.attn.**  encoder.layers.{i}.self_attn.attn.**
transformer.decoder.layers.{i}.attentions.1.attn.**  decoder.layers.{i}.cross_attn.attn.**
transformer.decoder.post_norm_layer.*               decoder.post_norm.*
query_embed.weight                                  query_embedding.weight
"""
MMDET2_DETR = MMDET2_SELF_ATTENTION
MMDET2_DETR += """
bbox_head.transformer.encoder.layers.{i}.attentions.0.attn.**  encoder.layers.{i}.self_attn.attn.**
bbox_head.transformer.decoder.layers.{i}.attentions.1.attn.**  decoder.layers.{i}.cross_attn.attn.**
bbox_head.transformer.decoder.post_norm.*                     decoder.post_norm.*
bbox_head.input_proj.*                                        neck.convs.0.conv.*
"""
OWN = same_on_both_sides(OFFICIAL, OFFICIAL_DETR, HEAD.partition('class_embed')[0])

LAYOUTS = (
    Layout('mmdet_ddetr', 'DETR', KeyMap(OWN, OWN_HEAD, same_on_both_sides(MASKS))),
    Layout('mmdet', 'DETR', KeyMap(OWN, MMDET_HEAD), one_head=True),
    Layout('mmdet2', 'DETR', KeyMap(MMDET2, MMDET2_DETR, MMDET_HEAD), one_head=True, spellings=MMDET2_FIRST_RELEASES),
    Layout(
        'official', 'DETR', KeyMap(OFFICIAL, OFFICIAL_DETR, HEAD, MASKS), coco91=True, one_head=True, box_model='detr.'
    ),
    Layout(
        'huggingface',
        'DETR',
        KeyMap(HUGGINGFACE, HUGGINGFACE_DETR, MASKS),
        coco91=True,
        one_head=True,
        box_model='detr.',
        spellings=IN_MEMORY_SINCE_5,
    ),
    Layout('detrex', 'DETR', KeyMap(DETREX, DETREX_DETR, HEAD), one_head=True),
)
