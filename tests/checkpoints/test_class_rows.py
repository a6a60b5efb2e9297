"""A class keeps its row by name, whatever its number: logits, scores and AP of every class that both models have."""

import copy

import pytest
import torch
from mmdet.datasets import CocoDataset

from mmdet_ddetr.checkpoints import ConversionReport, convert_checkpoint, fit, names_in
from mmdet_ddetr.checkpoints.class_rows import names_of_rows
from mmdet_ddetr.checkpoints.coco_classes import IDS
from mmdet_ddetr.evaluation import CocoMetric
from mmdet_ddetr.testing import make_batch

NAMES = ('a', 'b', 'c', 'd', 'e')
SUBSET = ('e', 'new', 'b', 'a')  # in another order
COCO = CocoDataset.METAINFO['classes']
DENOISING = dict(group_cfg=dict(dynamic=True, num_dn_queries=4))


def logits_of(model, inputs, samples):
    with torch.no_grad():
        return model(inputs, copy.deepcopy(samples), mode='tensor')[0]


def fitted(build, variant, names, classes, settings, report=None):
    """(model of ``names``, model of ``classes`` that starts from it)"""
    source = build(variant, num_classes=len(names), **settings)
    target = copy.deepcopy(build(variant, num_classes=len(classes), seed=3, **settings))
    weights = fit(source.state_dict(), target, report, names, classes)
    target.load_state_dict(weights, strict=True)
    return source, target


@pytest.mark.parametrize('variant', ['base', 'refine', 'two-stage', 'DETR'])
@pytest.mark.parametrize('classes', [SUBSET, ('c', 'd', 'e', 'a', 'b')], ids=['subset', 'other order'])
def test_logits_of_a_name_are_kept(build, variant, classes):
    report = ConversionReport()
    source, target = fitted(build, variant, NAMES, classes, {}, report)
    inputs, samples = make_batch([(64, 96)], [0], 4)
    theirs, ours = logits_of(source, inputs, samples), logits_of(target, inputs, samples)
    for label, name in enumerate(classes):
        if name in NAMES:
            # not always to the bit: BLAS sums in an order that depends on the number of rows (seen with AVX2)
            torch.testing.assert_close(ours[..., label], theirs[..., NAMES.index(name)], rtol=1e-6, atol=1e-6)
        else:
            assert not any(torch.equal(ours[..., label], theirs[..., i]) for i in range(len(NAMES)))
    if variant == 'DETR':
        torch.testing.assert_close(ours[..., -1], theirs[..., -1], rtol=1e-6, atol=1e-6)  # "no object"
    present = [name for name in classes if name in NAMES]
    new = [name for name in classes if name not in NAMES]
    assert report.notes == [
        f'classes by name: {len(present)} of {len(classes)} have a row in the checkpoint ({", ".join(present)}); '
        f'anew: {", ".join(new) or "none"}'
    ]


def test_label_embeddings_of_denoising_queries(build):
    source, target = fitted(build, 'two-stage', NAMES, SUBSET, dict(dn_cfg=DENOISING))
    ours, theirs = (model.dn_query_generator.label_embedding.weight for model in (target, source))
    for label, name in enumerate(SUBSET):
        assert any(torch.equal(ours[label], row) for row in theirs) == (name in NAMES)
        assert name not in NAMES or torch.equal(ours[label], theirs[NAMES.index(name)])
    last = len(target.bbox_head.cls_branches) - 1
    branches = [model.bbox_head.cls_branches[last] for model in (target, source)]
    assert torch.equal(branches[0].weight[0], branches[1].weight[0])  # "object" is no class


@pytest.mark.parametrize('classes', [('person', 'zebra', 'kiwi'), ('toothbrush',), COCO[::-1]])
@pytest.mark.parametrize('layout', ['mmdet_ddetr', 'official', 'huggingface'])
def test_coco_among_them(build, classes, layout):
    """COCO's 80, or their 91 ids, are known by their number where a checkpoint has no names."""
    state_dict = build('refine').state_dict()
    foreign = convert_checkpoint(dict(state_dict=state_dict), target=layout)['state_dict']
    rows = next(
        len(value) for key, value in foreign.items() if 'class_embed.0.bias' in key or 'cls_branches.0.bias' in key
    )
    assert rows == (80 if layout == 'mmdet_ddetr' else 91)
    checkpoint = convert_checkpoint(foreign)
    target = copy.deepcopy(build('refine', num_classes=len(classes), seed=3))
    target.load_state_dict(fit(checkpoint['state_dict'], target, None, names_in(checkpoint), classes), strict=True)
    key = 'bbox_head.cls_branches.1.bias'
    ours = target.state_dict()[key]
    for label, name in enumerate(classes):
        if name in COCO:
            assert ours[label] == state_dict[key][COCO.index(name)]


def test_names_of_rows():
    def of(rows, names=None, has_background=False):
        return names_of_rows({'bbox_head.cls_branches.0.bias': torch.zeros(rows)}, names, has_background)

    assert of(80) == of(81, has_background=True) == COCO
    assert of(91)[IDS[3]] == of(92, has_background=True)[IDS[3]] == COCO[3] and of(91)[0] == 'N/A'
    assert of(2, ('x', 'y')) == of(3, ('x', 'y'), has_background=True) == ('x', 'y')
    assert of(3, ('x', 'y')) is None and of(7) is None
    assert of(80, ('x', 'y')) is None


@pytest.mark.parametrize('variant', ['refine', 'two-stage'])
def test_ap_of_a_subset_is_kept_exactly(build, variant):
    """No iteration: each class that both have has the source's AP. The truth is a part of what the source finds."""
    settings = dict(test_cfg=dict(max_per_img=12 * len(NAMES)))  # every query with every class
    source, target = fitted(build, variant, NAMES, SUBSET, settings)
    inputs, samples = make_batch([(64, 96), (80, 64)], [0, 0], 4)
    figures, truth = {}, None
    for model, classes in ((source, NAMES), (target, SUBSET)):
        with torch.no_grad():
            results = model(inputs, copy.deepcopy(samples), mode='predict')
        if truth is None:
            truth = [
                [(box.tolist(), name) for i, name in enumerate(NAMES) for box in found.bboxes[found.labels == i][1:6:2]]
                for found in (result.pred_instances for result in results)
            ]
        metric = CocoMetric(classwise=True)
        metric.dataset_meta = dict(classes=classes)
        for image, result in enumerate(results):
            instances = [
                dict(bbox=box, bbox_label=classes.index(name), ignore_flag=0)
                for box, name in truth[image]
                if name in classes
            ]
            sample = dict(result.to_dict(), img_id=image, ori_shape=result.ori_shape, instances=instances)
            metric.process({}, [sample])
        figures[classes] = metric.evaluate(len(results))
    ours, theirs = figures[SUBSET], figures[NAMES]
    kept = [f'coco/{name}_precision' for name in SUBSET if name in NAMES]
    assert [ours[key] for key in kept] == [theirs[key] for key in kept]
    assert all(ours[key] > 0 for key in kept)
