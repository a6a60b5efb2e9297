"""fundamentalvision/Deformable-DETR and facebookresearch/detr."""

from ..key_map import KeyMap
from .layout import Layout
from .masks import MASKS
from .resnet import torchvision

# What the two have in common.
BODY = """
transformer.encoder.layers.{i}.linear1.*          encoder.layers.{i}.ffn.layers.0.0.*
transformer.encoder.layers.{i}.linear2.*          encoder.layers.{i}.ffn.layers.1.*
transformer.encoder.layers.{i}.norm1.*            encoder.layers.{i}.norms.0.*
transformer.encoder.layers.{i}.norm2.*            encoder.layers.{i}.norms.1.*
transformer.decoder.layers.{i}.self_attn.**        decoder.layers.{i}.self_attn.attn.**
transformer.decoder.layers.{i}.linear1.*          decoder.layers.{i}.ffn.layers.0.0.*
transformer.decoder.layers.{i}.linear2.*          decoder.layers.{i}.ffn.layers.1.*
transformer.decoder.layers.{i}.norm3.*            decoder.layers.{i}.norms.2.*
query_embed.weight                                query_embedding.weight
"""

# Names that detrex has kept.
SHARED_DEFORMABLE_DETR = """
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

SHARED_DETR = """
input_proj.*                                      neck.convs.0.conv.*
class_embed.*                                     bbox_head.cls_branches.0.*
bbox_embed.layers.0.*                             bbox_head.reg_branches.0.0.*
bbox_embed.layers.1.*                             bbox_head.reg_branches.0.2.*
bbox_embed.layers.2.*                             bbox_head.reg_branches.0.4.*
"""

# The decoder layer of Deformable DETR numbers its norms in the order of their definition, not of their use.
DEFORMABLE_DETR = """
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
DEFORMABLE_DETR += SHARED_DEFORMABLE_DETR

DETR = """
transformer.encoder.layers.{i}.self_attn.**        encoder.layers.{i}.self_attn.attn.**
transformer.decoder.layers.{i}.multihead_attn.**   decoder.layers.{i}.cross_attn.attn.**
transformer.decoder.layers.{i}.norm1.*            decoder.layers.{i}.norms.0.*
transformer.decoder.layers.{i}.norm2.*            decoder.layers.{i}.norms.1.*
transformer.decoder.norm.*                        decoder.post_norm.*
"""
DETR += SHARED_DETR

BACKBONE = torchvision('backbone.0.body.')
LAYOUTS = (
    Layout('official', 'DeformableDETR', KeyMap(BACKBONE, BODY, DEFORMABLE_DETR), coco91=True),
    Layout('official', 'DETR', KeyMap(BACKBONE, BODY, DETR, MASKS), coco91=True, one_head=True, box_model='detr.'),
)
