"""Every config keeps one contract: it builds, computes losses with 0 and 1 box, predicts, and runs raw.

Configs of MMDetection's own detectors (baselines) are held to what all detectors share. Models are made small here;
test_model_zoo.py builds each in its full size.
"""

import copy

import pytest
import torch
import yaml
from mmdet.models.detectors import DetectionTransformer
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from tiny_model import narrow

from mmdet_ddetr.apis import get_config, list_configs
from mmdet_ddetr.datasets.coco import LabelsByName
from mmdet_ddetr.evaluation.coco_metric import MetricByName
from mmdet_ddetr.registry import DATASETS, METRICS, is_a
from mmdet_ddetr.testing import make_batch, shrink

CONFIGS = list_configs()


def test_names():
    """mim finds a config by its basename, so no two may share one, in whatever folder."""
    root = CONFIGS['deformable-detr_r50_16xb2-50e_coco'].parents[1]
    names = [path.name for path in root.rglob('*.py')]
    assert len(names) >= 8
    assert len(set(names)) == len(names)


@pytest.fixture(scope='module', params=CONFIGS)
def config(request):
    return get_config(request.param)


@pytest.fixture(scope='module')
def model(config):
    init_default_scope(config.get('default_scope', 'mmdet'))
    model_cfg = narrow(shrink(copy.deepcopy(config.model)))
    before = copy.deepcopy(model_cfg)
    model = MODELS.build(model_cfg)
    if predicts_sets(config):  # mmdet's R-CNNs write into their config
        assert model_cfg == before, 'building changed the config, which may be built again'
    torch.manual_seed(0)
    model.init_weights()
    return model


def predicts_sets(config):
    return is_a(config.model.type, MODELS, DetectionTransformer)


def num_classes(config):
    return (config.model.get('bbox_head') or config.model.roi_head.bbox_head).num_classes


def test_model_index():
    """Every config has an entry in a metafile that the index lists; the quick start has no published results."""
    root = CONFIGS['deformable-detr_r50_16xb2-50e_coco'].parents[1]
    listed = yaml.safe_load((root.parent / 'model-index.yml').read_text())['Import']
    entries = [e for path in listed for e in yaml.safe_load((root.parent / path).read_text())['Models']]
    for entry in entries:
        assert (root.parent / entry['Config']).stem == entry['Name']
    published = [name for name, path in CONFIGS.items() if path.parent.name != 'quickstart']
    assert sorted(entry['Name'] for entry in entries) == sorted(published)


def test_runner_sections(config):
    """What mmengine's Runner and mim need is there."""
    for section in ('train', 'val', 'test'):
        dataset = config[f'{section}_dataloader']['dataset']
        for part in dataset.get('datasets', [dataset]):
            last = part['pipeline'][-1]['type']
            assert getattr(last, '__name__', last).endswith('PackDetInputs')
            assert is_a(part.type, DATASETS, LabelsByName)
            assert section != 'train' or part.filter_cfg.get('min_size') == 0
        assert config[f'{section}_cfg']
    assert is_a(config.val_evaluator.type, METRICS, MetricByName)
    assert config.default_scope == 'mmdet'
    hooks = config.default_hooks
    assert {'logger', 'checkpoint', 'visualization', 'param_scheduler', 'timer', 'sampler_seed'} <= set(hooks)
    assert config.auto_scale_lr.base_batch_size >= 1


def test_loss(model, config):
    check_loss(model, config, [1, 0])


# Every time: the first config of each model, which is what a name begins with.
FIRST = {name.partition('_')[0]: name for name in reversed(CONFIGS)}.values()


@pytest.mark.parametrize(
    'config',
    [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in CONFIGS],
    indirect=True,
)
def test_loss_without_boxes(model, config):
    check_loss(model, config, [0, 0])


def check_loss(model, config, counts):
    inputs, samples = make_batch([(64, 96), (57, 64)], counts, num_classes(config))
    model.train()
    model.zero_grad()
    losses = model(inputs, samples, mode='loss')
    total, log = model.parse_losses(losses)
    assert torch.isfinite(total)
    assert {'loss', 'loss_cls', 'loss_bbox'} <= set(log)
    if predicts_sets(config):
        if sum(counts) == 0:
            assert losses['loss_bbox'] == losses['loss_iou'] == 0 < losses['loss_cls']
        else:
            assert min(losses['loss_bbox'], losses['loss_iou'], losses['loss_cls']) > 0
    total.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, 'DistributedDataParallel needs a gradient for every parameter, in every batch'


def test_predict(model, config):
    inputs, samples = make_batch([(64, 96), (57, 64)], [1, 2], num_classes(config))
    with torch.no_grad():
        results = model.eval()(inputs, samples, mode='predict')
    for result, (h, w) in zip(results, [(64, 96), (57, 64)]):
        assert isinstance(result, DetDataSample)
        detections = result.pred_instances
        if predicts_sets(config):  # others drop what scores low
            assert 0 < len(detections) <= model.test_cfg['max_per_img']
        assert (detections.scores.diff() <= 0).all() and (detections.scores <= 1).all()
        assert (detections.labels >= 0).all() and (detections.labels < num_classes(config)).all()
        # boxes in pixels of the original image, twice as large as the input here
        assert (detections.bboxes >= 0).all()
        assert (detections.bboxes <= torch.tensor([2 * w, 2 * h, 2 * w, 2 * h]) + 1e-3).all()


def test_tensor_mode(model, config):
    if not predicts_sets(config):
        pytest.skip("mmdet's two-stage detectors need the samples in this mode")
    inputs, samples = make_batch([(64, 96), (64, 96)], [1, 1], num_classes(config))
    with torch.no_grad():
        with_samples = model.eval()(inputs, samples, mode='tensor')
        alone = model(inputs, mode='tensor')
    for a, b in zip(with_samples, alone, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b)
