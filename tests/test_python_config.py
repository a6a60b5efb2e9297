"""mmengine's pure-Python configs: read_base(), and classes in place of names; the shipped one, and types everywhere."""

import pytest
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.models import task_modules as mmdet_task_modules
from mmdet.models.backbones import ResNet
from tiny_model import tiny_config

from mmdet_ddetr import MSDeformAttn, get_config, task_modules
from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.apis.finetune import configure
from mmdet_ddetr.datasets import LoadImageFromFile, find_coco_folder
from mmdet_ddetr.detectors import DeformableDETR
from mmdet_ddetr.heads import SetHead
from mmdet_ddetr.layers import OwnLevelDeformAttn
from mmdet_ddetr.registry import DATASETS, HOOKS, METRICS, MODELS, TASK_UTILS, TRANSFORMS, class_of, is_a, our_class

NAME = 'deformable-detr-refine-python_lite0_shapes'  # tests/test_contract.py builds, trains a step and predicts with it


def test_types_by_name_and_by_class():
    for type_ in ('MSDeformAttn', 'mmdet_ddetr.MSDeformAttn', MSDeformAttn):
        assert class_of(type_, MODELS) is MSDeformAttn
    for type_ in ('IoUCost', 'mmdet.IoUCost', 'mmdet_ddetr.IoUCost', mmdet_task_modules.IoUCost, task_modules.IoUCost):
        assert our_class(type_, TASK_UTILS) is task_modules.IoUCost
    for type_ in ('LoadImageFromFile', 'mmdet_ddetr.LoadImageFromFile', MMCVLoadImageFromFile, LoadImageFromFile):
        assert our_class(type_, TRANSFORMS) is LoadImageFromFile
    assert class_of('mmdet.ResNet', MODELS) is class_of('ResNet', MODELS) is our_class(ResNet, MODELS) is ResNet
    assert class_of('Nothing', MODELS) is None and not is_a('Nothing', HOOKS, object)
    assert is_a('CocoMetric', METRICS, CocoMetric) and is_a(CocoMetric, METRICS, CocoMetric)
    assert not is_a('mmdet.VOCMetric', METRICS, CocoMetric)


class OwnAttention(MSDeformAttn):
    """Someone's, whose constructor asks for the levels."""

    def __init__(self, num_levels, **kwargs):
        super().__init__(num_levels=num_levels, **kwargs)


@pytest.mark.parametrize(
    ('attention', 'levels'),
    [
        ('mmdet_ddetr.MSDeformAttn', 3),
        (MSDeformAttn, 3),
        (MultiScaleDeformableAttention, 3),
        (OwnAttention, 3),
        ('mmdet_ddetr.OwnLevelDeformAttn', 1),
        (OwnLevelDeformAttn, 1),
    ],
)
def test_levels_of_attentions_follow(attention, levels):
    config = tiny_config('base')
    config.num_feature_levels = config.neck.num_outs = 3
    config.encoder.layer_cfg.self_attn_cfg = dict(type=attention, embed_dims=16, num_heads=4, batch_first=True)
    config.decoder.layer_cfg.cross_attn_cfg = dict(embed_dims=16, num_heads=4, batch_first=True)
    model = MODELS.build(dict(config, type=DeformableDETR, bbox_head=dict(config.bbox_head, type=SetHead)))
    assert [layer.self_attn.num_levels for layer in model.encoder.layers] == [levels] * 2
    assert [layer.cross_attn.num_levels for layer in model.decoder.layers] == [3, 3]


def test_finetuning_with_it(workspace):
    """Classes and metric of the data, the data set whose errors name the file."""
    config = get_config(NAME)
    config.train_dataloader.dataset.type = CocoDataset  # mmdet's
    configured = configure(config, find_coco_folder(workspace / 'data/shapes'), ['a', 'b'], epochs=2, batch_size=2)
    assert configured.train_dataloader.dataset.type == 'mmdet_ddetr.CocoDataset'
    assert configured.val_evaluator.classwise and configured.model.bbox_head.num_classes == 2


def test_it_runs_what_the_other_configs_run():
    """Its runtime is written once more, in the other syntax."""
    ours, text = get_config(NAME), get_config('deformable-detr-refine-twostage_lite0_shapes')

    def flat(hooks, registry):
        described = {name: {**hook, 'type': class_of(hook['type'], registry)} for name, hook in hooks.items()}
        return {name: {k: v for k, v in hook.items() if k != '_scope_'} for name, hook in described.items()}

    assert flat(ours.default_hooks, HOOKS) == flat(text.default_hooks, HOOKS)
    assert ours.env_cfg.to_dict() == text.env_cfg.to_dict()
    for section in ('train', 'val', 'test'):
        dataset = [config[f'{section}_dataloader'].dataset for config in (ours, text)]
        assert class_of(dataset[0].type, DATASETS) is class_of(dataset[1].type, DATASETS)
        assert dataset[0].get('filter_cfg') == dataset[1].get('filter_cfg')
    assert class_of(ours.val_evaluator.type, METRICS) is class_of(text.val_evaluator.type, METRICS)


@pytest.mark.slow
def test_train_then_predict_by_the_checkpoint_alone(run_tool, workspace):
    options = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=4')
    code, printed = run_tool('train.py', NAME, '--work-dir=work/python', '--cfg-options', *options)
    assert code == 0, printed
    code, printed = run_tool('test.py', NAME, 'work/python/epoch_1.pth')
    assert code == 0 and 'bbox_mAP' in printed, printed
    inferencer = DDetrInferencer(weights=str(workspace / 'work/python/epoch_1.pth'), device='cpu', show_progress=False)
    image = next((workspace / 'data/shapes/images/val').iterdir())
    (predictions,) = inferencer(str(image))['predictions']
    assert len(predictions['scores']) == 100
