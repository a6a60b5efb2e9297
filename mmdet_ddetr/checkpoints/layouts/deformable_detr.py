"""Deformable DETR in the code bases that have it."""

from ..key_map import KeyMap
from .code_bases import (
    DETREX,
    DETREX_SELF_ATTENTION,
    HUGGINGFACE,
    HUGGINGFACE_SELF_ATTENTION,
    IN_MEMORY_SINCE_5,
    MMDET2,
    MMDET2_SELF_ATTENTION,
    OFFICIAL,
    OFFICIAL_SELF_ATTENTION,
    OWN_HEAD,
    same_on_both_sides,
)
from .layout import Layout
from .masks import MASKS

# Names that detrex has kept.
SHARED = """
transformer.reference_points.*                    reference_points_fc.*
transformer.enc_output.*                          memory_trans_fc.*
transformer.enc_output_norm.*                     memory_trans_norm.*
transformer.pos_trans.*                           pos_trans_fc.*
transformer.pos_trans_norm.*                      pos_trans_norm.*
class_embed.{o}.*                                 bbox_head.cls_branches.{o}.*
bbox_embed.{o}.layers.0.*                         bbox_head.reg_branches.{o}.0.*
bbox_embed.{o}.layers.1.*                         bbox_head.reg_branches.{o}.2.*
bbox_embed.{o}.layers.2.*                         bbox_head.reg_branches.{o}.4.*
transformer.decoder.bbox_embed.**                  = bbox_embed.**   if box_refine
transformer.decoder.class_embed.**                 = class_embed.**  if two_stage
"""
# The official decoder layer numbers its norms in the order of their definition, not of their use.
OFFICIAL_DEFORMABLE_DETR = OFFICIAL_SELF_ATTENTION
OFFICIAL_DEFORMABLE_DETR += """
transformer.encoder.layers.{i}.self_attn.**        encoder.layers.{i}.self_attn.**
transformer.decoder.layers.{i}.cross_attn.**       decoder.layers.{i}.cross_attn.**
transformer.decoder.layers.{i}.norm2.*            decoder.layers.{i}.norms.0.*
transformer.decoder.layers.{i}.norm1.*            decoder.layers.{i}.norms.1.*
input_proj.0.0.*                                  neck.convs.0.conv.*
input_proj.0.1.*                                  neck.convs.0.gn.*
input_proj.1.0.*                                  neck.convs.1.conv.*
input_proj.1.1.*                                  neck.convs.1.gn.*
input_proj.2.0.*                                  neck.convs.2.conv.*
input_proj.2.1.*                                  neck.convs.2.gn.*
input_proj.3.0.*                                  neck.extra_convs.0.conv.*
input_proj.3.1.*                                  neck.extra_convs.0.gn.*
transformer.level_embed                           level_embed
"""
HUGGINGFACE_DEFORMABLE_DETR = HUGGINGFACE_SELF_ATTENTION
HUGGINGFACE_DEFORMABLE_DETR += """
model.encoder.layers.{i}.self_attn.**                  encoder.layers.{i}.self_attn.**
model.decoder.layers.{i}.encoder_attn.**               decoder.layers.{i}.cross_attn.**
model.input_proj.0.0.*                                neck.convs.0.conv.*
model.input_proj.0.1.*                                neck.convs.0.gn.*
model.input_proj.1.0.*                                neck.convs.1.conv.*
model.input_proj.1.1.*                                neck.convs.1.gn.*
model.input_proj.2.0.*                                neck.convs.2.conv.*
model.input_proj.2.1.*                                neck.convs.2.gn.*
model.input_proj.3.0.*                                neck.extra_convs.0.conv.*
model.input_proj.3.1.*                                neck.extra_convs.0.gn.*
model.level_embed                                     level_embed
model.reference_points.*                              reference_points_fc.*
model.enc_output.*                                    memory_trans_fc.*
model.enc_output_norm.*                               memory_trans_norm.*
model.pos_trans.*                                     pos_trans_fc.*
model.pos_trans_norm.*                                pos_trans_norm.*
class_embed.{o}.*                                     bbox_head.cls_branches.{o}.*
bbox_embed.{o}.layers.0.*                             bbox_head.reg_branches.{o}.0.*
bbox_embed.{o}.layers.1.*                             bbox_head.reg_branches.{o}.2.*
bbox_embed.{o}.layers.2.*                             bbox_head.reg_branches.{o}.4.*
model.decoder.bbox_embed.**                            = bbox_embed.**   if box_refine
model.decoder.class_embed.**                           = class_embed.**  if two_stage
"""
DETREX_DEFORMABLE_DETR = DETREX_SELF_ATTENTION
DETREX_DEFORMABLE_DETR += """
transformer.encoder.layers.{i}.attentions.0.**       encoder.layers.{i}.self_attn.**
transformer.decoder.layers.{i}.attentions.1.**       decoder.layers.{i}.cross_attn.**
neck.convs.{l}.conv.*                               neck.convs.{l}.conv.*
neck.convs.{l}.norm.*                               neck.convs.{l}.gn.*
neck.extra_convs.{l}.conv.*                         neck.extra_convs.{l}.conv.*
neck.extra_convs.{l}.norm.*                         neck.extra_convs.{l}.gn.*
query_embedding.weight                              query_embedding.weight
transformer.level_embeds                            level_embed
"""
MMDET2_DEFORMABLE_DETR = MMDET2_SELF_ATTENTION
MMDET2_DEFORMABLE_DETR += """
bbox_head.transformer.encoder.layers.{i}.attentions.0.**       encoder.layers.{i}.self_attn.**
bbox_head.transformer.decoder.layers.{i}.attentions.1.**       decoder.layers.{i}.cross_attn.**
bbox_head.transformer.level_embeds                            level_embed
bbox_head.transformer.reference_points.*                      reference_points_fc.*
bbox_head.transformer.enc_output.*                            memory_trans_fc.*
bbox_head.transformer.enc_output_norm.*                       memory_trans_norm.*
bbox_head.transformer.pos_trans.*                             pos_trans_fc.*
bbox_head.transformer.pos_trans_norm.*                        pos_trans_norm.*
neck.**                                                        neck.**
bbox_head.cls_branches.{o}.*                                  bbox_head.cls_branches.{o}.*
bbox_head.reg_branches.{o}.**                                  bbox_head.reg_branches.{o}.**
"""
OWN = same_on_both_sides(OFFICIAL, OFFICIAL_DEFORMABLE_DETR, SHARED)

LAYOUTS = (
    Layout('mmdet_ddetr', 'DeformableDETR', KeyMap(OWN, OWN_HEAD, same_on_both_sides(MASKS))),
    Layout('mmdet', 'DeformableDETR', KeyMap(OWN, OWN_HEAD)),
    Layout('mmdet2', 'DeformableDETR', KeyMap(MMDET2, MMDET2_DEFORMABLE_DETR)),
    Layout('official', 'DeformableDETR', KeyMap(OFFICIAL, OFFICIAL_DEFORMABLE_DETR, SHARED), coco91=True),
    Layout(
        'huggingface',
        'DeformableDETR',
        KeyMap(HUGGINGFACE, HUGGINGFACE_DEFORMABLE_DETR),
        coco91=True,
        spellings=IN_MEMORY_SINCE_5,
    ),
    Layout('detrex', 'DeformableDETR', KeyMap(DETREX, DETREX_DEFORMABLE_DETR, SHARED)),
)
