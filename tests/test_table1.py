"""Table 1 of the Deformable DETR paper, and DETR's own: each row's config has the published schedule and size."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.testing import shrink, without_download

# With COCO's 91 category ids. Integers: trainable parameters (without stem and first stage), as the official DETR
# prints them for R50; R101 has 17 more blocks. Others: millions, without the frozen norms, counted in the official
# Deformable DETR.
PARAMETERS = {
    'detr_r50_16xb4-500e_coco': 41_302_368,
    'detr_r50_8xb2-150e_coco': 41_302_368,
    'detr_r101_16xb4-500e_coco': 41_302_368 + 17 * (2 * 1024 * 256 + 9 * 256 * 256),
    'detr_r101_8xb2-150e_coco': 41_302_368 + 17 * (2 * 1024 * 256 + 9 * 256 * 256),
    'detr_r50-dc5_64xb1-500e_coco': 41_302_368,
    'detr_r101-dc5_64xb1-500e_coco': 41_302_368 + 17 * (2 * 1024 * 256 + 9 * 256 * 256),
    'detr_r50-dc5_64xb1-50e_coco': 41_302_368,
    'detr_r50-dc5-focal-300q_64xb1-50e_coco': 41_302_368 + 200 * 256 - 257,  # more queries, no "no object"
    'deformable-detr_r50-single-scale_16xb2-50e_coco': 34.067,
    'deformable-detr_r50-dc5-single-scale_16xb2-50e_coco': 34.067,
    'deformable-detr_r50_16xb2-50e_coco': 40.070,
    'deformable-detr-refine_r50_16xb2-50e_coco': 40.850,
    'deformable-detr-refine-twostage_r50_16xb2-50e_coco': 41.182,
}
BRANCHES = {'deformable-detr-refine_r50_16xb2-50e_coco': 6, 'deformable-detr-refine-twostage_r50_16xb2-50e_coco': 7}

# epochs, epochs at which the lr drops, GPUs x images, lr
SCHEDULES = {
    'detr_r50_16xb4-500e_coco': (500, [400], 16, 4, 1e-4),
    'detr_r101_16xb4-500e_coco': (500, [400], 16, 4, 1e-4),
    'detr_r50_8xb2-150e_coco': (150, [100], 8, 2, 1e-4),
    'detr_r101_8xb2-150e_coco': (150, [100], 8, 2, 1e-4),
    'detr_r50-dc5_64xb1-500e_coco': (500, [400], 64, 1, 1e-4),
    'detr_r101-dc5_64xb1-500e_coco': (500, [400], 64, 1, 1e-4),
    'detr_r50-dc5_64xb1-50e_coco': (50, [40], 64, 1, 1e-4),
    'detr_r50-dc5-focal-300q_64xb1-50e_coco': (50, [40], 64, 1, 1e-4),
    'faster-rcnn_r50_fpn_8xb2-109e_coco': (109, [101, 106], 8, 2, 0.02),
    'deformable-detr_r50-single-scale_16xb2-50e_coco': (50, [40], 16, 2, 2e-4),
    'deformable-detr_r50-dc5-single-scale_16xb2-50e_coco': (50, [40], 16, 2, 2e-4),
    'deformable-detr_r50_16xb2-50e_coco': (50, [40], 16, 2, 2e-4),
    'deformable-detr-refine_r50_16xb2-50e_coco': (50, [40], 16, 2, 2e-4),
    'deformable-detr-refine-twostage_r50_16xb2-50e_coco': (50, [40], 16, 2, 2e-4),
}


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def count_parameters(name, num_classes):
    """All parameters but those of norms in the backbone, and the trainable ones."""
    cfg = without_download(get_config(name).model)
    cfg.bbox_head.num_classes = num_classes
    with torch.device('meta'):
        model = MODELS.build(cfg)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    everything = sum(p.numel() for p in model.parameters() if id(p) not in norms)
    return everything, sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters(name):
    everything, trainable = count_parameters(name, 91)
    expected = PARAMETERS[name]
    assert (trainable if isinstance(expected, int) else round(everything / 1e6, 3)) == expected
    # with the 80 classes in use, each class branch lacks 11 rows of 256 weights and a bias
    assert everything - count_parameters(name, 80)[0] == 11 * 257 * BRANCHES.get(name, 1)


def test_parameters_of_faster_rcnn():
    """The paper gives 42 M, with the norms."""
    with torch.device('meta'):
        model = MODELS.build(without_download(get_config('faster-rcnn_r50_fpn_8xb2-109e_coco').model))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 42
    head = model.roi_head.bbox_head
    assert type(head.loss_bbox).__name__ == 'GIoULoss' and head.reg_decoded_bbox


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedule(name):
    cfg = get_config(name)
    epochs, drops, gpus, images, lr = SCHEDULES[name]
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == epochs
    assert cfg.param_scheduler[-1].milestones == drops and cfg.param_scheduler[-1].gamma == 0.1
    assert f'_{gpus}xb{images}-{epochs}e_' in name
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == gpus * images
    assert cfg.optim_wrapper.optimizer.lr == lr
    # the official codes of the DETR family train on images without boxes, Detectron2 does not
    filter_cfg = cfg.train_dataloader.dataset.filter_cfg
    assert filter_cfg.filter_empty_gt == name.startswith('faster-rcnn')
    assert cfg.val_dataloader.batch_size == cfg.test_dataloader.batch_size == 1


@pytest.mark.parametrize(
    'name, slow',
    [
        ('detr_r50_16xb4-500e_coco', ('backbone',)),
        ('detr_r50-dc5-focal-300q_64xb1-50e_coco', ('backbone',)),
        (
            'deformable-detr_r50-single-scale_16xb2-50e_coco',
            ('backbone', 'sampling_offsets', 'reference_points'),
        ),
    ],
)
def test_learning_rate_groups(name, slow):
    """A tenth for the named parameters, weight decay for all, gradients clipped to norm 0.1."""
    cfg = get_config(name)
    model = MODELS.build(shrink(cfg.model))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): n for n, p in model.named_parameters()}
    lr = cfg.optim_wrapper.optimizer.lr
    seen = set()
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            seen.add(name)
            assert group['lr'] == pytest.approx(lr * (0.1 if any(key in name for key in slow) else 1)), name
            assert group['weight_decay'] == 1e-4, name
    assert all(any(key in name for name in seen) for key in slow)
    assert wrapper.clip_grad_kwargs == dict(max_norm=0.1, norm_type=2)


def test_dc5_plus_starts_at_the_class_prior():
    model = MODELS.build(shrink(get_config('detr_r50-dc5-focal-300q_64xb1-50e_coco').model))
    model.init_weights()
    assert model.bbox_head.cls_out_channels == 80
    torch.testing.assert_close(model.bbox_head.cls_branches[0].bias.sigmoid(), torch.full((80,), 0.01))
    assert model.bbox_head.loss_cls.loss_weight == 2.0
