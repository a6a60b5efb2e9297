"""Anchor DETR in the code bases that have it."""

from ..key_map import KeyMap
from .code_bases import OWN_HEAD, same_on_both_sides
from .layout import Layout
from .masks import MASKS
from .resnet import torchvision

# The official code keeps layers and heads in the transformer itself; detrex has taken it over as it is. The last row of
# an attention is dense attention, of which weights of theirs cannot be told from row-column decoupled ones.
BODY = torchvision('backbone.body.')
BODY += """
transformer.encoder_layers.{i}.self_attn.*           encoder.layers.{i}.self_attn.*
transformer.encoder_layers.{i}.self_attn.out_proj.*  encoder.layers.{i}.self_attn.out_proj.*
transformer.encoder_layers.{i}.self_attn.**          encoder.layers.{i}.self_attn.attn.**
transformer.encoder_layers.{i}.norm1.*               encoder.layers.{i}.norms.0.*
transformer.encoder_layers.{i}.ffn.linear1.*         encoder.layers.{i}.ffn.layers.0.0.*
transformer.encoder_layers.{i}.ffn.linear2.*         encoder.layers.{i}.ffn.layers.1.*
transformer.encoder_layers.{i}.ffn.norm2.*           encoder.layers.{i}.norms.1.*
transformer.decoder_layers.{i}.self_attn.**          decoder.layers.{i}.self_attn.attn.**
transformer.decoder_layers.{i}.norm2.*               decoder.layers.{i}.norms.0.*
transformer.decoder_layers.{i}.cross_attn.*          decoder.layers.{i}.cross_attn.*
transformer.decoder_layers.{i}.cross_attn.out_proj.* decoder.layers.{i}.cross_attn.out_proj.*
transformer.decoder_layers.{i}.cross_attn.**         decoder.layers.{i}.cross_attn.attn.**
transformer.decoder_layers.{i}.norm1.*               decoder.layers.{i}.norms.1.*
transformer.decoder_layers.{i}.ffn.linear1.*         decoder.layers.{i}.ffn.layers.0.0.*
transformer.decoder_layers.{i}.ffn.linear2.*         decoder.layers.{i}.ffn.layers.1.*
transformer.decoder_layers.{i}.ffn.norm2.*           decoder.layers.{i}.norms.2.*
transformer.position.weight                          query_embedding.weight
transformer.pattern.weight                           patterns.weight
transformer.adapt_pos1d.0.*                          adapt_pos1d.layers.0.*
transformer.adapt_pos1d.2.*                          adapt_pos1d.layers.1.*
transformer.adapt_pos2d.0.*                          adapt_pos2d.layers.0.*
transformer.adapt_pos2d.2.*                          adapt_pos2d.layers.1.*
"""
HEAD = """
transformer.class_embed.{o}.*                        bbox_head.cls_branches.{o}.*
transformer.bbox_embed.{o}.layers.0.*                bbox_head.reg_branches.{o}.0.*
transformer.bbox_embed.{o}.layers.1.*                bbox_head.reg_branches.{o}.2.*
transformer.bbox_embed.{o}.layers.2.*                bbox_head.reg_branches.{o}.4.*
"""
OFFICIAL_NECK = """
input_proj.0.0.*                                     neck.convs.0.conv.*
input_proj.0.1.*                                     neck.convs.0.gn.*
"""
DETREX_NECK = """
input_proj.0.*                                       neck.convs.0.conv.*
input_proj.1.*                                       neck.convs.0.gn.*
criterion.empty_weight                               -
"""
OWN = same_on_both_sides(BODY, OFFICIAL_NECK)

LAYOUTS = (
    Layout('mmdet_ddetr', 'AnchorDETR', KeyMap(OWN, OWN_HEAD, same_on_both_sides(MASKS))),
    Layout('official', 'AnchorDETR', KeyMap(BODY, OFFICIAL_NECK, HEAD), coco91=True),
    Layout('detrex', 'AnchorDETR', KeyMap(BODY, DETREX_NECK, HEAD)),
)
