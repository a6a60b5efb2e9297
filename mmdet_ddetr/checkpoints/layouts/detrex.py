"""detrex, with the ResNet of detectron2."""

from ..key_map import KeyMap
from .layout import Layout
from .official import SHARED_DEFORMABLE_DETR, SHARED_DETR
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
"""
DEFORMABLE_DETR += SHARED_DEFORMABLE_DETR

DETR = """
transformer.encoder.layers.{i}.attentions.0.attn.**  encoder.layers.{i}.self_attn.attn.**
transformer.decoder.layers.{i}.attentions.1.attn.**  decoder.layers.{i}.cross_attn.attn.**
transformer.decoder.post_norm_layer.*               decoder.post_norm.*
query_embed.weight                                  query_embedding.weight
"""
DETR += SHARED_DETR

BACKBONE = detectron2('backbone.')
LAYOUTS = (
    Layout('detrex', 'DeformableDETR', KeyMap(BACKBONE, BODY, DEFORMABLE_DETR)),
    Layout('detrex', 'DETR', KeyMap(BACKBONE, BODY, DETR), one_head=True),
)
