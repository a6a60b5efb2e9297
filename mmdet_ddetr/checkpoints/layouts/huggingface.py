"""The files of the Hugging Face hub, ``transformers``' ``DeformableDetrForObjectDetection`` and ``DetrFor...``."""

from ..key_map import KeyMap
from .layout import Layout
from .masks import IN_MEMORY_SINCE_5 as MASKS_SINCE_5
from .masks import MASKS
from .resnet import huggingface, torchvision

BODY = """
model.encoder.layers.{i}.self_attn_layer_norm.*       encoder.layers.{i}.norms.0.*
model.encoder.layers.{i}.final_layer_norm.*           encoder.layers.{i}.norms.1.*
model.encoder.layers.{i}.fc1.*                        encoder.layers.{i}.ffn.layers.0.0.*
model.encoder.layers.{i}.fc2.*                        encoder.layers.{i}.ffn.layers.1.*
model.decoder.layers.{i}.self_attn.[qkv]_proj.weight  decoder.layers.{i}.self_attn.attn.in_proj_weight
model.decoder.layers.{i}.self_attn.[qkv]_proj.bias    decoder.layers.{i}.self_attn.attn.in_proj_bias
model.decoder.layers.{i}.self_attn.out_proj.*         decoder.layers.{i}.self_attn.attn.out_proj.*
model.decoder.layers.{i}.self_attn_layer_norm.*       decoder.layers.{i}.norms.0.*
model.decoder.layers.{i}.encoder_attn_layer_norm.*    decoder.layers.{i}.norms.1.*
model.decoder.layers.{i}.final_layer_norm.*           decoder.layers.{i}.norms.2.*
model.decoder.layers.{i}.fc1.*                        decoder.layers.{i}.ffn.layers.0.0.*
model.decoder.layers.{i}.fc2.*                        decoder.layers.{i}.ffn.layers.1.*
model.query_position_embeddings.weight                query_embedding.weight
"""

DEFORMABLE_DETR = """
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

DETR = """
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

# Most files of the hub hold timm's names. Written are those of transformers' own ResNet, which needs no timm.
BACKBONE = 'model.backbone.conv_encoder.model.'
BACKBONES = huggingface(BACKBONE), torchvision(BACKBONE)
IN_MEMORY_SINCE_5 = {
    r'^model\.backbone\.model\.': BACKBONE,
    r'\.o_proj\.': '.out_proj.',
    r'\.mlp\.(fc[12])\.': r'.\1.',
    **MASKS_SINCE_5,
}
LAYOUTS = (
    Layout(
        'huggingface',
        'DeformableDETR',
        KeyMap(*BACKBONES, BODY, DEFORMABLE_DETR),
        coco91=True,
        spellings=IN_MEMORY_SINCE_5,
    ),
    Layout(
        'huggingface',
        'DETR',
        KeyMap(*BACKBONES, BODY, DETR, MASKS),
        coco91=True,
        one_head=True,
        box_model='detr.',
        spellings=IN_MEMORY_SINCE_5,
    ),
)
