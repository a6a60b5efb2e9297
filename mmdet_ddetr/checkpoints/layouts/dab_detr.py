"""DAB-DETR, DAB-Deformable-DETR, and both with denoising (DN-DETR), in the code bases that have them."""

from ..key_map import KeyMap
from .code_bases import (
    DETREX,
    HUGGINGFACE,
    OFFICIAL,
    OWN_HEAD,
    same_on_both_sides,
)
from .conditional_detr import DETREX_ATTENTIONS, OFFICIAL_DECODER
from .deformable_detr import DETREX_DEFORMABLE_DETR, OFFICIAL_DEFORMABLE_DETR, SHARED
from .detr import HEAD
from .layout import Layout
from .masks import MASKS

# What the official code and detrex name alike, in front of their tables for DETR: the queries are boxes.
OF_BOXES = """
transformer.patterns.weight                            patterns.weight
transformer.encoder.query_scale.layers.{k}.*           encoder.query_scale.layers.{k}.*
transformer.decoder.query_scale.layers.{k}.*           decoder.query_scale.layers.{k}.*
transformer.decoder.query_scale.weight                 decoder.query_scale.weight
transformer.decoder.ref_point_head.layers.{k}.*        decoder.ref_point_head.layers.{k}.*
transformer.decoder.ref_anchor_head.layers.{k}.*       decoder.ref_anchor_head.layers.{k}.*
transformer.decoder.bbox_embed.layers.{k}.*            = bbox_embed.layers.{k}.*
"""
OFFICIAL_DAB = """
refpoint_embed.weight                                  query_embedding.weight
transformer.encoder.layers.{i}.activation.weight       encoder.layers.{i}.ffn.layers.0.1.weight
transformer.decoder.layers.{i}.activation.weight       decoder.layers.{i}.ffn.layers.0.1.weight
"""
OFFICIAL_DAB += OF_BOXES + OFFICIAL_DECODER
DETREX_DAB = """
anchor_box_embed.weight                                query_embedding.weight
"""
DETREX_DAB += OF_BOXES + DETREX_ATTENTIONS
# The layers of transformers hold the norm of each attention, and name their projections by its kind.
HUGGINGFACE_DAB = """
model.query_refpoint_embeddings.weight                              query_embedding.weight
model.patterns.weight                                               patterns.weight
model.encoder.query_scale.layers.{k}.*                              encoder.query_scale.layers.{k}.*
model.encoder.layers.{i}.activation_fn.weight                       encoder.layers.{i}.ffn.layers.0.1.weight
model.encoder.layers.{i}.self_attn.[qkv]_proj.weight                encoder.layers.{i}.self_attn.attn.in_proj_weight
model.encoder.layers.{i}.self_attn.[qkv]_proj.bias                  encoder.layers.{i}.self_attn.attn.in_proj_bias
model.encoder.layers.{i}.self_attn.out_proj.*                       encoder.layers.{i}.self_attn.attn.out_proj.*
model.decoder.layers.{i}.self_attn.self_attn.output_proj.*          decoder.layers.{i}.self_attn.out_proj.*
model.decoder.layers.{i}.self_attn.self_attn_query_content_proj.*   decoder.layers.{i}.self_attn.qcontent_proj.*
model.decoder.layers.{i}.self_attn.self_attn_query_pos_proj.*       decoder.layers.{i}.self_attn.qpos_proj.*
model.decoder.layers.{i}.self_attn.self_attn_key_content_proj.*     decoder.layers.{i}.self_attn.kcontent_proj.*
model.decoder.layers.{i}.self_attn.self_attn_key_pos_proj.*         decoder.layers.{i}.self_attn.kpos_proj.*
model.decoder.layers.{i}.self_attn.self_attn_value_proj.*           decoder.layers.{i}.self_attn.v_proj.*
model.decoder.layers.{i}.self_attn.self_attn_layer_norm.*           decoder.layers.{i}.norms.0.*
model.decoder.layers.{i}.cross_attn.cross_attn.output_proj.*        decoder.layers.{i}.cross_attn.out_proj.*
model.decoder.layers.{i}.cross_attn.cross_attn_query_content_proj.* decoder.layers.{i}.cross_attn.qcontent_proj.*
model.decoder.layers.{i}.cross_attn.cross_attn_query_pos_proj.*     decoder.layers.{i}.cross_attn.qpos_proj.*
model.decoder.layers.{i}.cross_attn.cross_attn_query_pos_sine_proj.* decoder.layers.{i}.cross_attn.qpos_sine_proj.*
model.decoder.layers.{i}.cross_attn.cross_attn_key_content_proj.*   decoder.layers.{i}.cross_attn.kcontent_proj.*
model.decoder.layers.{i}.cross_attn.cross_attn_key_pos_proj.*       decoder.layers.{i}.cross_attn.kpos_proj.*
model.decoder.layers.{i}.cross_attn.cross_attn_value_proj.*         decoder.layers.{i}.cross_attn.v_proj.*
model.decoder.layers.{i}.cross_attn.cross_attn_layer_norm.*         decoder.layers.{i}.norms.1.*
model.decoder.layers.{i}.mlp.fc1.*                                  decoder.layers.{i}.ffn.layers.0.0.*
model.decoder.layers.{i}.mlp.activation_fn.weight                   decoder.layers.{i}.ffn.layers.0.1.weight
model.decoder.layers.{i}.mlp.fc2.*                                  decoder.layers.{i}.ffn.layers.1.*
model.decoder.layers.{i}.mlp.final_layer_norm.*                     decoder.layers.{i}.norms.2.*
model.decoder.layernorm.*                                           decoder.post_norm.*
model.decoder.query_scale.layers.{k}.*                              decoder.query_scale.layers.{k}.*
model.decoder.ref_point_head.layers.{k}.*                           decoder.ref_point_head.layers.{k}.*
model.decoder.ref_anchor_head.layers.{k}.*                          decoder.ref_anchor_head.layers.{k}.*
model.input_projection.*                                            neck.convs.0.conv.*
class_embed.*                                                       bbox_head.cls_branches.0.*
bbox_predictor.layers.0.*                                           bbox_head.reg_branches.0.0.*
bbox_predictor.layers.1.*                                           bbox_head.reg_branches.0.2.*
bbox_predictor.layers.2.*                                           bbox_head.reg_branches.0.4.*
model.decoder.bbox_embed.layers.{k}.*                               = bbox_predictor.layers.{k}.*
"""
MMDET_DAB_HEAD = """
bbox_head.fc_cls.*           bbox_head.cls_branches.0.*
bbox_head.fc_reg.layers.0.*  bbox_head.reg_branches.0.0.*
bbox_head.fc_reg.layers.1.*  bbox_head.reg_branches.0.2.*
bbox_head.fc_reg.layers.2.*  bbox_head.reg_branches.0.4.*
"""
OF_DEFORMABLE = """
refpoint_embed.weight                                  query_embedding.weight
tgt_embed.weight                                       content_embedding.weight
patterns_embed.weight                                  patterns.weight
transformer.decoder.query_scale.layers.{k}.*           decoder.query_scale.layers.{k}.*
transformer.decoder.ref_point_head.layers.{k}.*        decoder.ref_point_head.layers.{k}.*
"""
OFFICIAL_DN = """
label_enc.weight                                       dn_query_generator.label_embedding.weight
"""
DETREX_DN = """
denoising_generator.label_encoder.weight               dn_query_generator.label_embedding.weight
"""
DETREX_DN_DEFORMABLE = """
label_encoder.weight                                   dn_query_generator.label_embedding.weight
"""
OWN = same_on_both_sides(OFFICIAL, OFFICIAL_DAB, HEAD.partition('class_embed')[0])
OFFICIAL_DAB_DEFORMABLE = OF_DEFORMABLE + OFFICIAL_DEFORMABLE_DETR
OWN_DEFORMABLE = same_on_both_sides(OFFICIAL, OFFICIAL_DAB_DEFORMABLE, SHARED)

LAYOUTS = (
    Layout('mmdet_ddetr', 'DABDETR', KeyMap(OWN, OWN_HEAD, same_on_both_sides(MASKS))),
    Layout('mmdet', 'DABDETR', KeyMap(OWN, MMDET_DAB_HEAD), one_head=True),
    Layout('official', 'DABDETR', KeyMap(OFFICIAL_DAB, OFFICIAL, HEAD, OFFICIAL_DN), coco91=True, one_head=True),
    Layout('huggingface', 'DABDETR', KeyMap(HUGGINGFACE_DAB, HUGGINGFACE), coco91=True, one_head=True),
    Layout('detrex', 'DABDETR', KeyMap(DETREX_DAB, DETREX, HEAD, DETREX_DN), one_head=True),
    Layout('mmdet_ddetr', 'DABDeformableDETR', KeyMap(OWN_DEFORMABLE, OWN_HEAD, same_on_both_sides(MASKS))),
    Layout(
        'official', 'DABDeformableDETR', KeyMap(OFFICIAL_DAB_DEFORMABLE, OFFICIAL, SHARED, OFFICIAL_DN), coco91=True
    ),
    Layout(
        'detrex',
        'DABDeformableDETR',
        KeyMap(OF_DEFORMABLE, DETREX, DETREX_DEFORMABLE_DETR, SHARED, DETREX_DN_DEFORMABLE),
    ),
)
