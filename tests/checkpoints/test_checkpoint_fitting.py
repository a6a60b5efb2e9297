"""Fine-tuning from a checkpoint with other classes or another number of queries."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch.distributed.fsdp import FullyShardedDataParallel

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import CheckpointError, ConversionReport, check_fit, convert, fit
from mmdet_ddetr.hooks import FitCheckpointHook

CLASSES = 'bbox_head.cls_branches.{}.{}'


@pytest.mark.parametrize('variant', ['base', 'refine', 'two-stage', 'DETR'])
def test_only_class_rows_start_anew(build, variant):
    model = build(variant, num_classes=5, seed=3)
    own, checkpoint = model.state_dict(), build(variant, num_classes=80).state_dict()
    before = {key: value.clone() for key, value in checkpoint.items()}
    report = ConversionReport()
    fitted = fit(checkpoint, model, report)
    assert set(fitted) == set(own)
    for key, value in fitted.items():
        if 'cls_branches' not in key:
            assert torch.equal(value, checkpoint[key]), key
    rows = 6 if variant == 'DETR' else 5
    kept = {('two-stage', 2): 0, ('DETR', 0): -1, ('DETR', 1): -1}  # "object"; "no object"
    for layer in range(3 if variant == 'two-stage' else 2):
        for part in ('weight', 'bias'):
            name = CLASSES.format(layer, part)
            expected = own[name].clone()
            if (variant, layer) in kept:
                row = kept[variant, layer]
                expected[row] = checkpoint[name][row]
                assert not torch.equal(own[name][row], checkpoint[name][row])
            assert len(fitted[name]) == rows
            assert torch.equal(fitted[name], expected)
            assert report.resized[name].startswith(f'{list(checkpoint[name].shape)} -> {list(own[name].shape)}')
    assert len(report.resized) == 2 * (3 if variant == 'two-stage' else 2)
    assert all(torch.equal(checkpoint[key], value) for key, value in before.items())  # not changed
    model.load_state_dict(fitted, strict=True)


@pytest.mark.parametrize(('queries', 'kept'), [(7, 7), (30, 12)])
def test_other_number_of_queries(build, queries, kept):
    model = build('base', seed=4, num_queries=queries)
    own, checkpoint = model.state_dict()['query_embedding.weight'].clone(), build('base').state_dict()
    report = ConversionReport()
    fitted = fit(checkpoint, model, report)
    embedding = fitted['query_embedding.weight']
    assert torch.equal(embedding[:kept], checkpoint['query_embedding.weight'][:kept])
    assert torch.equal(embedding[kept:], own[kept:])
    assert report.resized == {'query_embedding.weight': f'[12, 128] -> [{queries}, 128], the first {kept} kept'}
    model.load_state_dict(fitted, strict=True)


def test_equal_models_are_left_alone(build):
    report = ConversionReport()
    checkpoint = build('two-stage').state_dict()
    fitted = fit(checkpoint, build('two-stage', seed=1), report)
    assert all(fitted[key] is value for key, value in checkpoint.items())
    assert report == ConversionReport()


def test_neck_without_bias(build):
    """Zeros are dropped, anything else is refused: the outputs would be wrong."""
    model = build('base', no_neck_bias=True)
    checkpoint = build('base', seed=1).state_dict()
    with pytest.raises(
        CheckpointError, match=r'neck\.convs\.0\.conv\.bias and 3 more have no place in the model, .*True'
    ):
        fit(checkpoint, model)
    with pytest.raises(CheckpointError, match='have no place'):
        check_fit(checkpoint, model)
    zoo = convert({key: value for key, value in checkpoint.items() if not ('neck' in key and 'conv.bias' in key)})
    report = ConversionReport()
    model.load_state_dict(fit(zoo, model, report), strict=True)
    assert len(report.dropped) == 4

    without = {key: value for key, value in checkpoint.items() if not ('neck' in key and 'conv.bias' in key)}
    for fitted in (fit(without, build('base')), check_fit(without, build('base'))):
        build('base', seed=2).load_state_dict(fitted, strict=True)
        assert not fitted['neck.convs.0.conv.bias'].any()


def test_more_layers_than_the_model(build):
    """Refused, as its predictions would be others; what only trains is not."""
    weights = build('two-stage').state_dict()
    short = copy.deepcopy(build('two-stage'))
    for stack in (short.encoder.layers, short.decoder.layers):
        del stack[1:]
    with pytest.raises(CheckpointError, match=r'it has 2 layers that the model lacks: encoder\.layers\.1, decoder'):
        check_fit(weights, short)
    deeper = weights | {'backbone.layer1.7.conv1.weight': torch.ones(1)}
    with pytest.raises(CheckpointError, match=r'it has 1 layers that the model lacks: backbone\.layer1\.7'):
        check_fit(deeper, build('two-stage'))
    extra = ('bbox_head.cls_branches.3.weight', 'dn_query_generator.label_embedding.weight', 'backbone.fc.weight')
    check_fit(weights | dict.fromkeys(extra, torch.ones(1, 64)), build('two-stage'))


# --- the hook --------------------------------------------------------------------------------------------------------


def runner_of(model, training=True, resume=False):
    """What the hook reads of a runner."""
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop) if training else dict(type='EpochBasedTrainLoop')
    return SimpleNamespace(_load_from='a.pth', model=model, _resume=resume, _train_loop=loop)


def test_hook_converts_and_fits(build):
    model = build('two-stage', num_classes=5, seed=3)
    ours = build('two-stage').state_dict()
    for checkpoint in (
        dict(model=convert(ours, target='official'), epoch=49),
        convert(ours, target='huggingface'),
        dict(state_dict=dict(ours), meta={}),
    ):
        FitCheckpointHook().after_load_checkpoint(runner_of(model), checkpoint)
        loaded = checkpoint['state_dict']
        assert loaded['bbox_head.cls_branches.0.weight'].shape == (5, 64)
        model.load_state_dict(loaded, strict=True)


def test_configs_have_the_hook():
    hook = HOOKS.build(get_config('detr_r50_16xb4-500e_coco').default_hooks.fit_checkpoint)
    assert isinstance(hook, FitCheckpointHook)


def test_hook_leaves_sharded_models_alone():
    checkpoint = dict(state_dict=dict(weight=torch.ones(2)))
    sharded = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    FitCheckpointHook().after_load_checkpoint(runner_of(sharded), checkpoint)
    assert list(checkpoint) == ['state_dict']


def test_hook_leaves_a_resumed_training_alone(build):
    checkpoint = dict(state_dict=dict(build('base').state_dict()))
    before = dict(checkpoint['state_dict'])
    FitCheckpointHook().after_load_checkpoint(runner_of(build('base', num_classes=5), resume=True), checkpoint)
    assert checkpoint == dict(state_dict=before)


def test_hook_refuses_a_test_of_other_classes(build):
    checkpoint = dict(model=convert(build('refine').state_dict(), target='official'))
    hook, runner = FitCheckpointHook(), runner_of(build('refine', num_classes=5), training=False)
    with pytest.raises(
        CheckpointError, match=r'4 tensors do not fit the model; bbox_head\.cls_branches\.0\.weight is \[80'
    ):
        hook.after_load_checkpoint(runner, checkpoint)
    two_stage = runner_of(build('two-stage'), training=False)
    with pytest.raises(CheckpointError, match=r'it lacks \d+ tensors of the model: bbox_head\.cls_branches\.2\.weight'):
        hook.after_load_checkpoint(two_stage, dict(state_dict=dict(build('refine').state_dict())))
    checkpoint = dict(model=convert(build('refine').state_dict(), target='official'))
    hook.after_load_checkpoint(runner_of(build('refine', seed=5), training=False), checkpoint)
    assert len(checkpoint['meta']['dataset_meta']['classes']) == 80


def test_hook_leaves_other_models_alone():
    checkpoint = dict(state_dict=dict(weight=torch.ones(2, 3), bias=torch.ones(2)))
    before = dict(checkpoint['state_dict'])
    FitCheckpointHook().after_load_checkpoint(runner_of(torch.nn.Linear(3, 2)), checkpoint)
    assert checkpoint['state_dict'] == before


def test_other_number_of_boxes_with_contents(build):
    """DAB-Deformable-DETR learns both of its queries."""
    model, checkpoint = build('DABDeformableDETR', seed=4, num_queries=7), build('DABDeformableDETR').state_dict()
    fitted = fit(checkpoint, model)
    for name in ('query_embedding.weight', 'content_embedding.weight'):
        assert torch.equal(fitted[name], checkpoint[name][:7])
    model.load_state_dict(fitted, strict=True)


def test_an_encoder_that_tells_classes_keeps_them_by_name(build):
    """Of two-stage DAB-Deformable-DETR, where row 0 is a class like any other."""
    model = build('two-stage DABDeformableDETR', num_classes=2, seed=3)
    checkpoint = build('two-stage DABDeformableDETR', num_classes=3).state_dict()
    fitted = fit(checkpoint, model, names=('a', 'b', 'c'), classes=('c', 'a'))
    for layer in range(3):
        for name in (CLASSES.format(layer, part) for part in ('weight', 'bias')):
            assert torch.equal(fitted[name], checkpoint[name][[2, 0]])
