"""Detectors to export: those of tests/tiny_model.py, other architectures of the configs, and mmdet's own."""

import os.path as osp

import mmdet
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny_model import CLASSES, NAMES, tiny_model
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.testing import randomise, shrink

ARCHITECTURES = {
    'masks': 'detr-masks_r50_8xb2-25e_coco',
    'deformable masks': 'deformable-detr-masks_r50_8xb2-25e_coco',
    'DCNv2': 'deformable-detr-refine-twostage_x101-64x4d-mdconv-c3-c5_16xb2-50e_coco',
    'DAT': 'deformable-detr_dat-t_16xb2-50e_coco',
    'BiFPN': 'deformable-detr_r50-bifpn_16xb2-50e_coco',
    'FPN': 'deformable-detr_r50-fpn_16xb2-50e_coco',
    'own level': 'deformable-detr_r50-own-level_16xb2-50e_coco',
    'DC5': 'deformable-detr_r50-dc5-single-scale_16xb2-50e_coco',
    'DN-DAB': 'dn-dab-detr_r50_8xb2-50e_coco',
    'DAB, fixed': 'dab-detr-fixxy_r50-dc5_8xb2-50e_coco',
    'anchor grid': 'anchor-detr-grid_r50_8xb1-50e_coco',
    'SAM, DC5': 'sam-detr_r50-dc5_8xb1-12e_coco',
    'Lite0, DN': 'deformable-detr-refine-twostage-dn_lite0_shapes',
    'hybrid': 'deformable-detr-refine-twostage-dn-hybrid_r50_16xb2-50e_coco',
    'SMCA, conv': 'smca-detr-multi-scale-conv_r50_8xb1-50e_coco',
}
OF_MMDET = {
    'mmdet': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'mmdet, two-stage': 'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'mmdet, DINO': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
}
TITLES = {  # in docs/export.md
    'DETR': 'detr',
    'DETR with masks': 'masks',
    'Deformable DETR': 'base',
    'Deformable DETR, refined': 'refine',
    'Deformable DETR, refined, two-stage': 'two-stage',
    'Deformable DETR with masks': 'deformable masks',
    'Deformable DETR with DCNv2': 'DCNv2',
    'Deformable DETR with DAT': 'DAT',
    'Deformable DETR with FPN': 'FPN',
    'Deformable DETR with BiFPN': 'BiFPN',
    'Deformable DETR, own level': 'own level',
    'Deformable DETR, one scale of DC5': 'DC5',
    'Deformable DETR with EfficientNet-Lite0, trained with denoising': 'Lite0, DN',
    'Deformable DETR, trained with one-to-many branches': 'hybrid',
    'Conditional DETR': 'conditional',
    'DAB-DETR': 'dab',
    'DAB-DETR, fixed x and y': 'DAB, fixed',
    'DAB-Deformable DETR': 'dab-deformable',
    'DN-DAB-DETR': 'DN-DAB',
    'Anchor DETR': 'anchor',
    'Anchor DETR, grid': 'anchor grid',
    'SAM-DETR, multi-scale': 'sam',
    'SAM-DETR, DC5': 'SAM, DC5',
    'SMCA': 'smca',
    'SMCA, multi-scale': 'smca-multi-scale',
    'SMCA, multi-scale of the released archive': 'SMCA, conv',
    "mmdet's Deformable DETR": 'mmdet',
    "mmdet's Deformable DETR, refined, two-stage": 'mmdet, two-stage',
    "mmdet's DINO": 'mmdet, DINO',
}
ALL = *NAMES, *ARCHITECTURES, *OF_MMDET


def detector(name: str) -> nn.Module:
    """One of ``ALL``, random in every parameter, without dropout."""
    if name in NAMES:
        return tiny_model(name).eval()
    init_default_scope('mmdet')
    if name in ARCHITECTURES:
        cfg = shrink(get_config(ARCHITECTURES[name]).model)
        if name == 'SMCA, conv':
            cfg.own_maps = False  # with it, there is no form for tensors of sizes
    else:
        cfg = _of_mmdet(OF_MMDET[name])
    cfg.encoder.num_layers = cfg.decoder.num_layers = 2
    cfg.bbox_head.num_classes = CLASSES
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    if name in OF_MMDET:
        nn.init.normal_(model.level_embed)  # until init_weights, it is whatever lies in memory
    return randomise(model).eval()


def _of_mmdet(path: str) -> dict:
    """With mmdet's 256 channels, which the positions of DINO's queries have in any case."""
    cfg = shrink(Config.fromfile(osp.join(osp.dirname(mmdet.__file__), '.mim/configs', path)).model)
    cfg.backbone.base_channels = 8
    cfg.neck.in_channels = [16, 32, 64]
    cfg.test_cfg.max_per_img = cfg.num_queries
    return cfg
