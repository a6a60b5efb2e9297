"""Models of both architectures that are small in width and depth only: every kind of layer is there."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from mmdet_ddetr import get_config
from mmdet_ddetr.testing import without_download

CHANNELS = 64  # two in each of the neck's 32 groups: with one, a bias before the norm would have no effect
VARIANTS = {
    'base': {},
    'refine': dict(with_box_refine=True),
    'two-stage': dict(with_box_refine=True, as_two_stage=True),
    'two-stage without refine': dict(as_two_stage=True),
}
CONFIGS = {  # of what else there is
    'DETR': 'detr_r50_16xb4-500e_coco',
    'ConditionalDETR': 'conditional-detr_r50_8xb2-50e_coco',
    'DABDETR': 'dab-detr-3pat_r50_8xb2-50e_coco',
    'DABDeformableDETR': 'dab-deformable-detr_r50_8xb2-50e_coco',
    'two-stage DABDeformableDETR': 'dab-deformable-detr-twostage_r50_8xb2-50e_coco',
}


def small_config(name):
    """The model config of ``name`` with few channels and 2 + 2 layers; ResNet-50 keeps its blocks."""
    model = without_download(get_config(name).model)
    model.backbone.update(base_channels=8, stem_channels=8)
    model.neck.update(in_channels=[channels // 8 for channels in model.neck.in_channels], out_channels=CHANNELS)
    for coder in (model.encoder, model.decoder):
        coder.num_layers = 2
        for attention in ('self_attn_cfg', 'cross_attn_cfg'):
            if attention in coder.layer_cfg:
                coder.layer_cfg[attention].update(embed_dims=CHANNELS, num_heads=4)
        coder.layer_cfg.ffn_cfg.update(embed_dims=CHANNELS, feedforward_channels=128)
    model.positional_encoding.num_feats = CHANNELS // 2
    model.num_queries = 12
    return model


def with_noise(model, seed=0):
    """Noise on every parameter and all statistics of batch norms: at their initial values, they hide errors.

    Less on convolutions: behind 50 of them the features would be so large that a bias has no effect.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.02 if parameter.dim() == 4 else 0.15) * torch.randn(parameter.shape, generator=rng)
        for name, buffer in model.named_buffers():
            if name.endswith('running_mean'):
                buffer += 0.1 * torch.randn(buffer.shape, generator=rng)
            elif name.endswith('running_var'):
                buffer *= 0.5 + torch.rand(buffer.shape, generator=rng)
    return model


@pytest.fixture(scope='session')
def noise():
    return with_noise


class Builder:
    """``build('two-stage', num_classes=80)``: a small random model in eval mode, the same each time."""

    def __init__(self):
        self._models = {}

    def config(self, variant, num_classes=80, no_neck_bias=False, **settings):
        config = small_config(CONFIGS.get(variant, 'deformable-detr_r50_16xb2-50e_coco'))
        config.bbox_head.num_classes = num_classes
        if no_neck_bias:
            config.neck.bias = 'auto'  # MMDetection's default: none before a norm
        config.update(VARIANTS.get(variant, {}), **settings)
        return config

    def __call__(self, variant, seed=0, **settings):
        key = variant, seed, repr(sorted(settings.items()))
        if key not in self._models:
            init_default_scope('mmdet')
            torch.manual_seed(seed)
            self._models[key] = with_noise(MODELS.build(self.config(variant, **settings)), seed).eval()
        return self._models[key]


@pytest.fixture(scope='session')
def build():
    return Builder()
