"""What the options of tools/finetune.py change in a config, beside data and length."""

from importlib.util import find_spec

from mmdet.models import ResNet
from mmengine.config import Config

from ..backbones import EfficientNetLite
from ..registry import MODELS, class_of
from .configs import ConfigError

LAST = {EfficientNetLite: 4, ResNet: 3}  # output of stride 32
LITE = dict(mean=[127.0] * 3, std=[128.0] * 3)
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
PAPERS_LR_MULT = 0.1  # of a ResNet, which has more to lose than a small backbone (Deformable DETR, section 5)
BACKBONES = {  # backbone, channels of strides 8, 16 and 32, first of their outputs, normalisation of images
    **{
        arch: (
            dict(
                type='mmdet_ddetr.EfficientNetLite',
                arch=arch,
                frozen_stages=2,
                norm_eval=True,
                train_dtype='auto',
                init_cfg=dict(type='Pretrained', checkpoint=f'efficientnet-lite://{arch}'),
            ),
            channels,
            2,
            LITE,
        )
        for arch, channels in (('lite0', (40, 112, 320)), ('lite1', (40, 112, 320)), ('lite2', (48, 120, 352)))
    },
    'r50': (
        dict(
            type='ResNet',
            depth=50,
            num_stages=4,
            frozen_stages=1,
            norm_cfg=dict(type='BN', requires_grad=False),
            norm_eval=True,
            style='pytorch',
            init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
        ),
        (512, 1024, 2048),
        1,
        IMAGENET,
    ),
}


def set_backbone(cfg: Config, name: str) -> None:
    """Give a detector another backbone and what belongs to it.

    That is the neck's channels, the normalisation of the images, and for a ResNet in place of a small one the papers'
    learning rate. Weights to start from that were trained with the old backbone (``load_from``) are left out.

    Args:
        cfg: changed in place; its backbone is one of those that end at stride 32, its neck has ``in_channels``.
        name: a key of BACKBONES.

    Raises:
        ConfigError: the config's backbone is another.
    """
    model = cfg.model
    old, neck = model.get('backbone') or {}, model.get('neck') or {}
    number = len(neck.get('in_channels') or ())
    kind = class_of(old.get('type'), MODELS) if old else None
    if kind not in LAST or old.get('dilations') or not 1 <= number <= 3:
        raise ConfigError(
            f'--backbone {name}: the backbone {old.get("type")} of the config is none that can be exchanged; it takes '
            'an EfficientNetLite or a ResNet whose neck has in_channels for up to three maps'
        )
    if old.get('out_indices', (LAST[kind],))[-1] != LAST[kind]:
        raise ConfigError(
            f'--backbone {name}: the backbone of the config ends at out_indices={old.out_indices}, before stride 32'
        )
    backbone, channels, first, pixels = BACKBONES[name]
    new = dict(backbone, out_indices=tuple(range(first + 3 - number, first + 3)))
    if (kind is EfficientNetLite) == name.startswith('lite'):
        new.update({key: old[key] for key in ('frozen_stages', 'norm_eval', 'train_dtype') if key in old})
    if any(new.get(key) != old.get(key) for key in ('arch', 'depth')):
        cfg.pop('load_from', None)
    if old.get('init_cfg', True) is None:  # from random weights, as the config has it
        new['init_cfg'] = None
    model.backbone = new
    neck.in_channels = list(channels[-number:])
    keys = ((cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}).get('custom_keys') or {}
    if name == 'r50' and kind is EfficientNetLite and 'backbone' in keys:
        keys.backbone = dict(lr_mult=PAPERS_LR_MULT)
    model.data_preprocessor.update(pixels, bgr_to_rgb=True)


def add_ema(cfg: Config) -> None:
    """Average the weights; figures, checkpoints and pictures are the average's, the figures of both are told."""
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='mmdet_ddetr.EMAHook', compare=True)]


def add_tensorboard(cfg: Config) -> None:
    """Write TensorBoard's files beside the log.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec('tensorboard') is None:
        raise ConfigError('--tensorboard needs a package that is not here: pip install tensorboard')
    backends = cfg.visualizer.get('vis_backends') or []
    cfg.visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]
