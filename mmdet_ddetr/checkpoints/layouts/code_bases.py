"""What the models of one code base have in common: the names of their backbone and of their transformer's body."""

from .masks import IN_MEMORY_SINCE_5 as MASKS_SINCE_5
from .resnet import detectron2, huggingface, torchvision


def same_on_both_sides(*tables: str) -> str:
    """A table that maps our names of other tables to themselves."""
    rows = [line.split() for table in tables for line in table.splitlines()]
    return '\n'.join(dict.fromkeys(f'{row[1]}  {row[1]}' for row in rows if len(row) == 2 and row[1] != '-'))


# The papers' own codes, which descend from facebookresearch/detr.
OFFICIAL = torchvision('backbone.0.body.')
OFFICIAL += """
transformer.encoder.layers.{i}.linear1.*          encoder.layers.{i}.ffn.layers.0.0.*
transformer.encoder.layers.{i}.linear2.*          encoder.layers.{i}.ffn.layers.1.*
transformer.encoder.layers.{i}.norm1.*            encoder.layers.{i}.norms.0.*
transformer.encoder.layers.{i}.norm2.*            encoder.layers.{i}.norms.1.*
transformer.decoder.layers.{i}.linear1.*          decoder.layers.{i}.ffn.layers.0.0.*
transformer.decoder.layers.{i}.linear2.*          decoder.layers.{i}.ffn.layers.1.*
transformer.decoder.layers.{i}.norm3.*            decoder.layers.{i}.norms.2.*
query_embed.weight                                query_embedding.weight
"""

# The files of the Hugging Face hub. Most hold timm's names of a ResNet. Written are those of transformers' own, which
# needs no timm.
IN_FILES = 'model.backbone.conv_encoder.model.'
HUGGINGFACE = huggingface(IN_FILES) + '\n' + torchvision(IN_FILES)
HUGGINGFACE += """
model.encoder.layers.{i}.self_attn_layer_norm.*       encoder.layers.{i}.norms.0.*
model.encoder.layers.{i}.final_layer_norm.*           encoder.layers.{i}.norms.1.*
model.encoder.layers.{i}.fc1.*                        encoder.layers.{i}.ffn.layers.0.0.*
model.encoder.layers.{i}.fc2.*                        encoder.layers.{i}.ffn.layers.1.*
model.decoder.layers.{i}.self_attn_layer_norm.*       decoder.layers.{i}.norms.0.*
model.decoder.layers.{i}.encoder_attn_layer_norm.*    decoder.layers.{i}.norms.1.*
model.decoder.layers.{i}.final_layer_norm.*           decoder.layers.{i}.norms.2.*
model.decoder.layers.{i}.fc1.*                        decoder.layers.{i}.ffn.layers.0.0.*
model.decoder.layers.{i}.fc2.*                        decoder.layers.{i}.ffn.layers.1.*
model.query_position_embeddings.weight                query_embedding.weight
"""
IN_MEMORY_SINCE_5 = {  # transformers 5 has other names in memory, not in files
    r'^model\.backbone\.model\.': IN_FILES,
    r'\.o_proj\.': '.out_proj.',
    r'\.mlp\.(fc[12])\.': r'.\1.',
    **MASKS_SINCE_5,
}

# detrex, with the ResNet of detectron2.
DETREX = detectron2('backbone.') + '\n' + torchvision('backbone.body.')  # the latter in its DC5 models
DETREX += """
transformer.encoder.layers.{i}.ffns.0.**             encoder.layers.{i}.ffn.**
transformer.encoder.layers.{i}.norms.**              encoder.layers.{i}.norms.**
transformer.decoder.layers.{i}.ffns.0.**             decoder.layers.{i}.ffn.**
transformer.decoder.layers.{i}.norms.**              decoder.layers.{i}.norms.**
criterion.empty_weight                              -
"""

# Decoder self-attention by nn.MultiheadAttention, in the detectors that have it.
OFFICIAL_SELF_ATTENTION = """
transformer.decoder.layers.{i}.self_attn.**        decoder.layers.{i}.self_attn.attn.**
"""
HUGGINGFACE_SELF_ATTENTION = """
model.decoder.layers.{i}.self_attn.[qkv]_proj.weight  decoder.layers.{i}.self_attn.attn.in_proj_weight
model.decoder.layers.{i}.self_attn.[qkv]_proj.bias    decoder.layers.{i}.self_attn.attn.in_proj_bias
model.decoder.layers.{i}.self_attn.out_proj.*         decoder.layers.{i}.self_attn.attn.out_proj.*
"""
DETREX_SELF_ATTENTION = """
transformer.decoder.layers.{i}.attentions.0.attn.**  decoder.layers.{i}.self_attn.attn.**
"""
MMDET2_SELF_ATTENTION = """
bbox_head.transformer.decoder.layers.{i}.attentions.0.attn.**  decoder.layers.{i}.self_attn.attn.**
"""

# MMDetection 3.x has our keys, but for the head of its DETRs, which has a single class and box branch.
OWN_BACKBONE = torchvision('backbone.')
OWN_HEAD = """
bbox_head.cls_branches.{o}.*   bbox_head.cls_branches.{o}.*
bbox_head.reg_branches.{o}.**  bbox_head.reg_branches.{o}.**
dn_query_generator.label_embedding.*  dn_query_generator.label_embedding.*
neck.**  neck.**
"""
MMDET_HEAD = """
bbox_head.fc_cls.*              bbox_head.cls_branches.0.*
bbox_head.reg_ffn.layers.0.0.*  bbox_head.reg_branches.0.0.*
bbox_head.reg_ffn.layers.1.*    bbox_head.reg_branches.0.2.*
bbox_head.fc_reg.*              bbox_head.reg_branches.0.4.*
"""

# MMDetection 2.x, where the head holds the transformer.
MMDET2 = OWN_BACKBONE
MMDET2 += """
bbox_head.transformer.encoder.layers.{i}.ffns.0.**             encoder.layers.{i}.ffn.**
bbox_head.transformer.encoder.layers.{i}.norms.**              encoder.layers.{i}.norms.**
bbox_head.transformer.decoder.layers.{i}.ffns.0.**             decoder.layers.{i}.ffn.**
bbox_head.transformer.decoder.layers.{i}.norms.**              decoder.layers.{i}.norms.**
bbox_head.query_embedding.weight                              query_embedding.weight
"""
MMDET2_FIRST_RELEASES = {  # the names in its published DETR
    r'(layers\.\d+)\.self_attn\.': r'\1.attentions.0.',
    r'(layers\.\d+)\.multihead_attn\.': r'\1.attentions.1.',
    r'(layers\.\d+)\.ffn\.': r'\1.ffns.0.',
    r'\.decoder\.norm\.': '.decoder.post_norm.',
}
