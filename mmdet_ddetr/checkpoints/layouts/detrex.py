"""detrex, with the ResNet of detectron2."""

from ..key_map import KeyMap
from .layout import Layout
from .resnet import detectron2

BODY = """
transformer.encoder.layers.{i}.ffns.0.**             encoder.layers.{i}.ffn.**
transformer.encoder.layers.{i}.norms.**              encoder.layers.{i}.norms.**
transformer.decoder.layers.{i}.attentions.0.attn.**  decoder.layers.{i}.self_attn.attn.**
transformer.decoder.layers.{i}.ffns.0.**             decoder.layers.{i}.ffn.**
transformer.decoder.layers.{i}.norms.**              decoder.layers.{i}.norms.**
criterion.empty_weight                              -
"""

DEFORMABLE_DETR = """
transformer.encoder.layers.{i}.attentions.0.**       encoder.layers.{i}.self_attn.**
transformer.decoder.layers.{i}.attentions.1.**       decoder.layers.{i}.cross_attn.**
neck.convs.{l}.conv.*                               neck.convs.{l}.conv.*
neck.convs.{l}.norm.*                               neck.convs.{l}.gn.*
neck.extra_convs.{l}.conv.*                         neck.extra_convs.{l}.conv.*
neck.extra_convs.{l}.norm.*                         neck.extra_convs.{l}.gn.*
query_embedding.weight                              query_embedding.weight
transformer.level_embeds                            level_embed
transformer.reference_points.*                      reference_points_fc.*
transformer.enc_output.*                            memory_trans_fc.*
transformer.enc_output_norm.*                       memory_trans_norm.*
transformer.pos_trans.*                             pos_trans_fc.*
transformer.pos_trans_norm.*                        pos_trans_norm.*
class_embed.{o}.*                                   bbox_head.cls_branches.{o}.*
bbox_embed.{o}.layers.0.*                           bbox_head.reg_branches.{o}.0.*
bbox_embed.{o}.layers.1.*                           bbox_head.reg_branches.{o}.2.*
bbox_embed.{o}.layers.2.*                           bbox_head.reg_branches.{o}.4.*
transformer.decoder.bbox_embed.**                    = bbox_embed.**   if box_refine
transformer.decoder.class_embed.**                   = class_embed.**  if two_stage
"""

DETR = """
transformer.encoder.layers.{i}.attentions.0.attn.**  encoder.layers.{i}.self_attn.attn.**
transformer.decoder.layers.{i}.attentions.1.attn.**  decoder.layers.{i}.cross_attn.attn.**
transformer.decoder.post_norm_layer.*               decoder.post_norm.*
input_proj.*                                        neck.convs.0.conv.*
query_embed.weight                                  query_embedding.weight
class_embed.*                                       bbox_head.cls_branches.0.*
bbox_embed.layers.0.*                               bbox_head.reg_branches.0.0.*
bbox_embed.layers.1.*                               bbox_head.reg_branches.0.2.*
bbox_embed.layers.2.*                               bbox_head.reg_branches.0.4.*
"""

BACKBONE = detectron2('backbone.')
LAYOUTS = (
    Layout('detrex', 'DeformableDETR', KeyMap(BACKBONE, BODY, DEFORMABLE_DETR)),
    Layout('detrex', 'DETR', KeyMap(BACKBONE, BODY, DETR), one_head=True),
)
