"""Options of tools/finetune.py: backbone, image size, frozen parts, patience, averaged weights."""

from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny_model import tiny_model
from torch import nn
from training_case import make_config, train

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import finetune_options
from mmdet_ddetr.apis.configs import ConfigError
from mmdet_ddetr.apis.finetune_options import add_ema, add_tensorboard, set_backbone
from mmdet_ddetr.apis.image_size import set_image_size
from mmdet_ddetr.hooks import FreezeHook, PatienceHook
from mmdet_ddetr.hooks.errors import StartError

FINETUNE = 'deformable-detr-refine-twostage-dn_lite0_finetune'
R50 = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco'


# ------------------------------------------------------------------------------------------------------------- backbone
@pytest.mark.parametrize('name', finetune_options.BACKBONES)
@pytest.mark.parametrize('config', [FINETUNE, R50, 'deformable-detr-refine-twostage-dn_lite0_shapes'])
def test_backbone(config, name):
    """The new backbone's maps are what the neck takes, at strides 8, 16 and 32."""
    init_default_scope('mmdet')
    cfg = get_config(config)
    cfg.model.backbone.init_cfg = None
    set_backbone(cfg, name)
    backbone, neck = MODELS.build(cfg.model.backbone), MODELS.build(cfg.model.neck)
    assert cfg.model.data_preprocessor.mean[0] == pytest.approx(123.675 if name == 'r50' else 127)
    rate = cfg.optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult
    assert rate == (0.1 if name == 'r50' or config == R50 else 1.0)
    assert cfg.get('load_from') == ('drawings://lite0' if (config, name) == (FINETUNE, 'lite0') else None)
    maps = backbone(torch.rand(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [8, 4, 2]
    assert len(neck(maps)) == cfg.model.neck.num_outs
    trained = [parameter.requires_grad for parameter in backbone.parameters()]
    assert any(trained) and not all(trained)


def test_weights_of_another_resnet_are_left_out():
    cfg = get_config(R50)
    cfg.load_from, cfg.model.backbone.depth = 'r101.pth', 101
    set_backbone(cfg, 'r50')
    assert cfg.get('load_from') is None and cfg.model.backbone.depth == 50


def test_backbone_that_is_there():
    cfg = get_config(FINETUNE)
    before = cfg.model.to_dict()
    set_backbone(cfg, 'lite0')
    assert cfg.model.to_dict() == before


@pytest.mark.parametrize(
    'config', ['deformable-detr_r50-dc5-single-scale_16xb2-50e_coco', 'detr_lite0_shapes', 'rtmdet'], ids=str
)
def test_backbone_that_cannot_be_exchanged(config):
    if config == 'rtmdet':
        cfg = Config(dict(model=dict(backbone=dict(type='CSPNeXt'), neck=dict(in_channels=[1, 2, 3]))))
    else:
        cfg = get_config(config)
    with pytest.raises(ConfigError, match='^--backbone lite1: the backbone '):
        set_backbone(cfg, 'lite1')


# ----------------------------------------------------------------------------------------------------------- image size
def test_image_size():
    cfg = get_config(R50)
    set_image_size(cfg, 667)  # half of 1333
    plain, cropped = cfg.train_dataloader.dataset.pipeline[3].transforms
    assert plain[0].scales[0] == (240, 667) and plain[0].scales[-1] == (400, 667)
    assert cropped[0].scales[0] == (200, 2102) and cropped[1].crop_size == (192, 300)
    for name in ('val', 'test'):
        assert cfg[f'{name}_dataloader'].dataset.pipeline[1].scale == (667, 400)


def test_image_size_leaves_shares():
    cfg = get_config(FINETUNE)  # 384 x 288
    set_image_size(cfg, 512)
    plain, cropped = cfg.train_dataloader.dataset.pipeline[4].transforms
    assert plain[0].scale == cropped[1].scale == (512, 384) and cropped[0].crop_size == (0.5, 0.5)


def test_image_size_of_a_pipeline_without_resize():
    cfg = get_config('deformable-detr-refine-twostage-dn_lite0_shapes')
    set_image_size(cfg, 96)
    kinds = [transform.type for transform in cfg.train_dataloader.dataset.pipeline]
    assert kinds[1:4] == ['LoadAnnotations', 'Resize', 'RandomFlip']
    assert cfg.train_dataloader.dataset.pipeline[2].scale == cfg.val_dataloader.dataset.pipeline[1].scale == (96, 96)
    cfg.test_dataloader.dataset.pipeline.pop(1)
    with pytest.raises(ConfigError, match='--image-size 96: the pipeline of test_dataloader has no Resize'):
        set_image_size(cfg, 96)


# --------------------------------------------------------------------------------------------------------------- frozen
@pytest.mark.parametrize(
    ('part', 'still'), [('backbone', {'neck', 'encoder', 'decoder', 'level_embed'}), ('encoder', {'decoder'})]
)
def test_freeze(part, still):
    model, hook = tiny_model('refine'), FreezeHook(part)
    runner = SimpleNamespace(model=model)
    hook.before_run(runner)
    model.train()
    hook.before_train_iter(runner, 0)
    groups = {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert still <= groups and not {'backbone', 'neck', 'encoder', 'level_embed'} - still & groups
    assert not model.backbone.training and model.decoder.training
    assert model.encoder.training == (part == 'backbone')


def test_frozen_parts_stay(data, tmp_path):
    """Weights and statistics of the frozen parts are those of the start, the others are not."""
    before = {}

    class Keep(FreezeHook):
        def before_train(self, runner):
            before.update({key: value.clone() for key, value in runner.model.state_dict().items()})

    changes = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 9}
    runner = train(make_config(data, tmp_path, changes), [Keep('encoder')])
    after = runner.model.state_dict()
    changed = {key.split('.')[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed and not changed & {'backbone', 'neck', 'encoder', 'level_embed'}


def test_what_cannot_be_frozen():
    with pytest.raises(ValueError, match="part must be one of backbone, encoder, got 'head'"):
        FreezeHook('head')
    with pytest.raises(StartError, match='Linear has no encoder to freeze'):
        FreezeHook('encoder').before_run(SimpleNamespace(model=nn.Linear(1, 1)))


# ------------------------------------------------------------------------------------------------------------- patience
class Hub(dict):
    get_info, update_info = dict.get, dict.__setitem__


def fake_runner(hub):
    logger = SimpleNamespace(warning=lambda text: None)
    return SimpleNamespace(train_loop=SimpleNamespace(stop_training=False), message_hub=hub, logger=logger)


def test_patience():
    """Stops after the second evaluation in a row that is not better than the best; a resumed training counts on."""
    hub = Hub()
    for values, stops in (([0.1, 0.2, 0.2, 0.3, 0.3], False), ([0.29], True)):
        runner, hook = fake_runner(hub), PatienceHook(2)
        hook.before_train(runner)
        for value in values:
            hook.after_val_epoch(runner, {'coco/bbox_mAP_50': 1.0, 'coco/bbox_mAP': value})
        assert runner.train_loop.stop_training == stops


def test_patience_does_not_end_a_test():
    hook, runner = PatienceHook(1), fake_runner(Hub(patience=[0.9, 0]))
    hook.after_val_epoch(runner, {'coco/bbox_mAP': 0.1})
    assert not runner.train_loop.stop_training


# ------------------------------------------------------------------------------------------------------ average, boards
def test_averaged_weights_beside_the_raw_ones(data, tmp_path):
    """Both are evaluated; the first figures are the average's, as without the comparison."""
    found = {}

    class Watch(PatienceHook):
        def after_val_epoch(self, runner, metrics=None):
            found.update(metrics)

    cfg = make_config(data, tmp_path, {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    add_ema(cfg)
    train(cfg, [Watch(1)])
    averaged = {key for key in found if key.startswith('coco/bbox_')}
    assert len(averaged) == 6 and averaged == {key.removeprefix('raw/') for key in found if key.startswith('raw/')}


def test_tensorboard(monkeypatch):
    cfg = get_config(FINETUNE)
    monkeypatch.setattr(finetune_options, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='--tensorboard needs .*: pip install tensorboard'):
        add_tensorboard(cfg)
    monkeypatch.setattr(finetune_options, 'find_spec', lambda name: 'here')
    add_tensorboard(cfg)
    kinds = [backend['type'] for backend in cfg.visualizer.vis_backends]
    assert kinds == ['mmdet_ddetr.SafeLocalVisBackend', 'TensorboardVisBackend']
