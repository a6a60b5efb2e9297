"""The detectors of the configs, narrow enough to train and to compile in tests."""

import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.testing import randomise, shrink, without_dropout

NAMES = {
    'base': 'deformable-detr_r50_16xb2-50e_coco',
    'refine': 'deformable-detr-refine_r50_16xb2-50e_coco',
    'two-stage': 'deformable-detr-refine-twostage_r50_16xb2-50e_coco',
    'detr': 'detr_r50_16xb4-500e_coco',
    'conditional': 'conditional-detr_r50_8xb2-50e_coco',
    'dab': 'dab-detr-3pat_r50_8xb2-50e_coco',
    'dab-deformable': 'dab-deformable-detr-twostage_r50_8xb2-50e_coco',
    'anchor': 'anchor-detr_r50_8xb1-50e_coco',
    'sam': 'sam-detr-smca-multi-scale_r50_8xb2-12e_coco',
    'smca': 'smca-detr_r50_8xb2-50e_coco',
    'smca-multi-scale': 'smca-detr-multi-scale_r50_8xb1-50e_coco',
}
CLASSES = 3


def narrow(model_cfg):
    """Give a ResNet-18 an eighth of its channels."""
    if model_cfg.backbone.get('depth') == 18:
        model_cfg.backbone.base_channels = 8
        for part in ('neck', 'mask_head'):
            if part in model_cfg:
                model_cfg[part].in_channels = [channels // 8 for channels in model_cfg[part].in_channels]
    return model_cfg


def tiny_config(variant: str, embed_dims: int = 16) -> dict:
    """The model config of a variant with two layers each in encoder and decoder, and a backbone of 8 channels."""
    init_default_scope('mmdet')
    model = shrink(get_config(NAMES[variant]).model)
    for stack in (model.encoder, model.decoder):
        stack.num_layers = 2
        stack.layer_cfg.ffn_cfg.feedforward_channels = 2 * embed_dims
        for name in ('self_attn_cfg', 'cross_attn_cfg', 'ffn_cfg'):
            if name in stack.layer_cfg:
                stack.layer_cfg[name].embed_dims = embed_dims
    narrow(model)
    model.neck.out_channels = embed_dims
    if model.neck.get('norm_cfg'):
        model.neck.norm_cfg.num_groups = 4
    model.positional_encoding.num_feats = embed_dims // 2
    model.bbox_head.update(num_classes=CLASSES, embed_dims=embed_dims)
    return model


def tiny_model(variant: str, num_cp: int = -1, **changes) -> nn.Module:
    """Random in every parameter, the same each time, without dropout.

    Args:
        num_cp: layers of encoder and decoder with activation checkpointing.
        **changes: to the config of the model.
    """
    torch.manual_seed(0)
    config = tiny_config(variant)
    config.update(changes)
    config.encoder.num_cp = config.decoder.num_cp = num_cp
    return randomise(without_dropout(MODELS.build(config)))
