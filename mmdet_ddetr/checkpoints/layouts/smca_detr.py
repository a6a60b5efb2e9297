"""SMCA-DETR in its official code and in the archive of its multi-scale code."""

from ..key_map import KeyMap
from .code_bases import OFFICIAL, OWN_HEAD, same_on_both_sides
from .detr import HEAD, OFFICIAL_DETR
from .layout import Layout
from .masks import MASKS

DECODER = """
transformer.decoder.layers.{i}.norm4.*             decoder.layers.{i}.place_norm.*
transformer.decoder.layers.0.point1.layers.{k}.*   decoder.ref_point_head.layers.{k}.*
transformer.decoder.layers.{i}.point2.*            decoder.layers.{i}.cross_attn.offsets.*
transformer.decoder.layers.{i}.point3.*            decoder.layers.{i}.cross_attn.scales.*
transformer.decoder.layers.{i}.point4.*            decoder.layers.{i}.cross_attn.level_logits.*
"""
# The archive's levels have the strides 8, 16, 32 and 64. Its first version has the same two convolutions between all.
ARCHIVE = """
input_proj_512.*                                   neck.convs.0.conv.*
input_proj_1024.*                                  neck.convs.1.conv.*
input_proj_2048.*                                  neck.convs.2.conv.*
input_proj_2048_3.*                                neck.extra_convs.0.conv.*
transformer.level_embed                            level_embed
transformer.conv.*                                 encoder.downsample.*
transformer.encoder.layers.{i}.conv_1.*            encoder.layers.{i}.self_attn.in_conv.*
transformer.encoder.layers.{i}.conv_2.*            encoder.layers.{i}.self_attn.out_conv.*
transformer.encoder.layers.{i}.self_attn_8.*       encoder.layers.{i}.self_attn.level_convs.0.*
transformer.encoder.layers.{i}.self_attn_16.*      encoder.layers.{i}.self_attn.level_convs.1.*
transformer.encoder.layers.{i}.self_attn_32.*      encoder.layers.{i}.self_attn.level_convs.2.*
transformer.encoder.layers.{i}.self_attn_64.*      encoder.layers.{i}.self_attn.level_convs.3.*
transformer.encoder.layers.{i}.high_to_low.*       encoder.layers.{i}.self_attn.down_convs.*
transformer.encoder.layers.{i}.high_to_low_1.*     encoder.layers.{i}.self_attn.down_convs.0.*
transformer.encoder.layers.{i}.high_to_low_2.*     encoder.layers.{i}.self_attn.down_convs.1.*
transformer.encoder.layers.{i}.high_to_low_3.*     encoder.layers.{i}.self_attn.down_convs.2.*
transformer.encoder.layers.{i}.low_to_high.*       encoder.layers.{i}.self_attn.up_convs.*
transformer.encoder.layers.{i}.low_to_high_1.*     encoder.layers.{i}.self_attn.up_convs.0.*
transformer.encoder.layers.{i}.low_to_high_2.*     encoder.layers.{i}.self_attn.up_convs.1.*
transformer.encoder.layers.{i}.low_to_high_3.*     encoder.layers.{i}.self_attn.up_convs.2.*
"""
BRANCHES = HEAD.partition('class_embed')
HEAD_OF_ARCHIVE = ''.join(BRANCHES[1:])  # without input_proj
# The paper's multi-scale model, of which there is no code: its levels may be any.
OWN_LEVELS = """
neck.convs.{l}.conv.*        neck.convs.{l}.conv.*
neck.extra_convs.{l}.conv.*  neck.extra_convs.{l}.conv.*
"""
OWN = same_on_both_sides(OFFICIAL, OFFICIAL_DETR, DECODER, BRANCHES[0])
OWN_MULTI_SCALE = same_on_both_sides(ARCHIVE) + OWN_LEVELS

LAYOUTS = (
    Layout('mmdet_ddetr', 'SMCADETR', KeyMap(OWN, OWN_HEAD, same_on_both_sides(MASKS))),
    Layout('mmdet_ddetr', 'multi-scale SMCADETR', KeyMap(OWN, OWN_MULTI_SCALE, OWN_HEAD, same_on_both_sides(MASKS))),
    Layout(
        'official',
        'SMCADETR',
        KeyMap(OFFICIAL, OFFICIAL_DETR, DECODER, HEAD, MASKS),
        coco91=True,
        one_head=True,
        unused_row=True,
        box_model='detr.',
    ),
    Layout(
        'official',
        'multi-scale SMCADETR',
        KeyMap(OFFICIAL, OFFICIAL_DETR, DECODER, ARCHIVE, HEAD_OF_ARCHIVE),
        coco91=True,
        one_head=True,
        unused_row=True,
    ),
)
