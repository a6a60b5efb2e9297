"""DN-DETR against the official code, denoising queries and their losses included.

The fixtures are of IDEA-Research/DN-DETR, without noise, so that nothing is random; two groups, images of two
targets and of one. Changed for them was what that code hard-codes: CUDA, 256 channels, 128 of a reference's embedding.
"""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from official import assert_parity, fill, head_inputs, load, samples_of, small

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import CheckpointError, check_fit, convert, describe, fit
from mmdet_ddetr.testing import make_batch, shrink

ONE_POINT = dict(num_points=1)
NO_NOISE = dict(label_noise_scale=0.0, box_noise_scale=0.0, group_cfg=dict(num_groups=2))
OFFICIAL = {  # file, config, layers, width of the FFN, channels, changes
    'DN-DETR': ('dn_dab_detr.pt', 'dn-dab-detr_r50_8xb2-50e_coco', (2, 3), 32, 16, dict(num_patterns=2)),
    'DN-Deformable-DETR': (
        'dn_dab_deformable_detr.pt',
        'dn-dab-deformable-detr_r50_8xb2-50e_coco',
        (1, 2),
        16,
        32,
        dict(
            own_maps=False,
            encoder=dict(layer_cfg=dict(self_attn_cfg=ONE_POINT)),
            decoder=dict(position_in_padded_map=True, layer_cfg=dict(cross_attn_cfg=ONE_POINT)),
        ),
    ),
}


def official(case):
    """(our model with the weights of a fixture, the fixture)."""
    file, name, *sizes, settings = OFFICIAL[case]
    fixture = load(file)
    settings = Config(copy.deepcopy(settings))
    settings.merge_from_dict(dict(dn_cfg=NO_NOISE))
    model = small(name, fixture, *sizes, **settings.to_dict())
    fill(model, fixture)
    return model.train(), fixture


@pytest.mark.parametrize('case', OFFICIAL)
def test_parity_with_the_official_code(case):
    """Matching queries, then denoising ones. Measured: 2e-6 in logits, 3e-7 in boxes, 2e-5 of the norm in gradients."""
    model, fixture = official(case)
    assert_parity(model, fixture, 'official')
    inputs = head_inputs(model, fixture)
    losses = model.bbox_head.loss(**inputs, batch_data_samples=samples_of(fixture))
    last = len(fixture['dn_losses']) - 1
    for layer, (cls, l1, giou) in enumerate(fixture['dn_losses']):
        prefix = '' if layer == last else f'd{layer}.'
        found = [losses[f'{prefix}dn_loss_{name}'].item() for name in ('cls', 'bbox', 'iou')]
        assert found == pytest.approx([cls, 5 * l1, 2 * giou], rel=1e-5)


@pytest.mark.parametrize('case', OFFICIAL)
def test_predictions_are_those_of_the_matching_queries(case):
    """They have the indicator, too, 0, so that a model without it predicts something else."""
    model, fixture = official(case)
    with torch.no_grad():
        logits, boxes = model.bbox_head(**head_inputs(model.eval(), fixture))
    Q = logits.shape[2]
    torch.testing.assert_close(logits, fixture['logits'][:, :, :Q], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(boxes, fixture['boxes'][:, :, :Q], rtol=1e-5, atol=1e-5)
    assert fixture['logits'].shape[2] > Q


def build(name, **changes):
    init_default_scope('mmdet')
    cfg = get_config(name)
    cfg.merge_from_dict(dict(model=changes))
    torch.manual_seed(0)
    return MODELS.build(shrink(cfg.model))


KEYS = {  # of the label embedding
    ('official', 'dn-dab-detr'): 'label_enc.weight',
    ('official', 'dn-dab-deformable-detr'): 'label_enc.weight',
    ('detrex', 'dn-dab-detr'): 'denoising_generator.label_encoder.weight',
    ('detrex', 'dn-dab-deformable-detr'): 'label_encoder.weight',
}


@pytest.mark.parametrize(('code', 'name'), KEYS)
def test_checkpoints_both_ways(code, name):
    """A row for each of 91 ids or 80 classes, and one for "no label"."""
    ours = build(f'{name}_r50_8xb2-50e_coco').state_dict()
    theirs = convert(ours, target=code)
    label_embedding = theirs[KEYS[code, name]]
    assert label_embedding.shape == ((92 if code == 'official' else 81), 255)
    ours_embedding = ours['dn_query_generator.label_embedding.weight']
    assert torch.equal(label_embedding[-1], ours_embedding[80])
    assert torch.equal(label_embedding[13 if code == 'official' else 11], ours_embedding[11])  # stop sign
    back = convert(theirs)
    assert set(back) == set(ours) and all(torch.equal(back[key], ours[key]) for key in ours)
    assert 'denoising indicator' in describe(back)


def test_what_knows_no_indicator_does_not_get_it():
    with pytest.raises(CheckpointError, match='no counterpart there: dn_query_generator.label_embedding.weight'):
        convert(build('dn-dab-detr_r50_8xb2-50e_coco').state_dict(), target='mmdet')
    without = build('dn-dab-detr_r50_8xb2-50e_coco', dn_cfg=dict(indicator=False))
    theirs = convert(without.state_dict(), target='mmdet')  # of training alone
    assert not any('dn_' in key or 'label' in key for key in theirs)


def test_a_model_without_indicator_does_not_take_the_weights():
    weights = build('dn-dab-detr_r50_8xb2-50e_coco').state_dict()
    with pytest.raises(CheckpointError, match='set model.dn_cfg.indicator=True'):
        check_fit(weights, build('dab-detr_r50_8xb2-50e_coco'))
    assert check_fit(weights, build('dn-dab-detr_r50-dc5_8xb2-50e_coco')).keys() == weights.keys()


@pytest.mark.parametrize('names', [None, ('a', 'b', 'c', 'd')])
def test_no_label_stays_where_classes_change(names):
    """By name, and where only the number is known."""
    key = 'dn_query_generator.label_embedding.weight'
    source, model = (build('dn-dab-detr_r50_8xb2-50e_coco', bbox_head=dict(num_classes=number)) for number in (4, 2))
    before = model.state_dict()[key].clone()
    fitted = fit(source.state_dict(), model, None, names, None if names is None else ('c', 'new'))
    theirs = source.state_dict()[key]
    assert torch.equal(fitted[key][2], theirs[4])
    assert torch.equal(fitted[key][0], before[0] if names is None else theirs[2])
    assert torch.equal(fitted[key][1], before[1])
    model.load_state_dict(fitted, strict=True)


def test_training_without_targets():
    """The row for "no label" and every other parameter get a gradient; a prediction needs no ground truth."""
    for name in ('dn-dab-detr', 'dn-dab-deformable-detr'):
        model = build(f'{name}_r50_8xb2-50e_coco').train()
        inputs, samples = make_batch([(64, 80), (50, 64)], [0, 0], 80)
        sum(model.loss(inputs, samples).values()).backward()
        assert model.dn_query_generator.label_embedding.weight.grad is not None
        (result, _) = model.eval()(inputs, samples, mode='predict')
        assert len(result.pred_instances)


def test_queries_that_have_no_place_for_it():
    with pytest.raises(ValueError, match='dn_cfg.indicator must be False: the queries of DABDeformableDETR have none'):
        build('dab-deformable-detr-twostage_r50_8xb2-50e_coco', dn_cfg=dict(indicator=True))
    with pytest.raises(ValueError, match='dn_cfg.indicator must be False: the queries of AnchorDETR have none'):
        build('anchor-detr_r50_8xb1-50e_coco', dn_cfg=dict(indicator=True))
