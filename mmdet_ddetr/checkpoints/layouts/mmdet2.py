"""MMDetection 2.x, where the head holds the transformer."""

from ..key_map import KeyMap
from .layout import Layout
from .mmdet import DETR_HEAD
from .native import BACKBONE

BODY = """
bbox_head.transformer.encoder.layers.{i}.ffns.0.**             encoder.layers.{i}.ffn.**
bbox_head.transformer.encoder.layers.{i}.norms.**              encoder.layers.{i}.norms.**
bbox_head.transformer.decoder.layers.{i}.attentions.0.attn.**  decoder.layers.{i}.self_attn.attn.**
bbox_head.transformer.decoder.layers.{i}.ffns.0.**             decoder.layers.{i}.ffn.**
bbox_head.transformer.decoder.layers.{i}.norms.**              decoder.layers.{i}.norms.**
bbox_head.query_embedding.weight                              query_embedding.weight
"""

DEFORMABLE_DETR = """
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

DETR = """
bbox_head.transformer.encoder.layers.{i}.attentions.0.attn.**  encoder.layers.{i}.self_attn.attn.**
bbox_head.transformer.decoder.layers.{i}.attentions.1.attn.**  decoder.layers.{i}.cross_attn.attn.**
bbox_head.transformer.decoder.post_norm.*                     decoder.post_norm.*
bbox_head.input_proj.*                                        neck.convs.0.conv.*
"""

FIRST_RELEASES = {  # the names in its published DETR
    r'(layers\.\d+)\.self_attn\.': r'\1.attentions.0.',
    r'(layers\.\d+)\.multihead_attn\.': r'\1.attentions.1.',
    r'(layers\.\d+)\.ffn\.': r'\1.ffns.0.',
    r'\.decoder\.norm\.': '.decoder.post_norm.',
}
LAYOUTS = (
    Layout('mmdet2', 'DeformableDETR', KeyMap(BACKBONE, BODY, DEFORMABLE_DETR)),
    Layout('mmdet2', 'DETR', KeyMap(BACKBONE, BODY, DETR, DETR_HEAD), one_head=True, spellings=FIRST_RELEASES),
)
