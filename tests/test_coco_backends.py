"""faster-coco-eval gives pycocotools' figures, by the same metric."""

import json

import numpy as np
import pytest
import torch
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import coco_metric
from pycocotools import mask as mask_api

from mmdet_ddetr.evaluation import CocoMetric, backends
from mmdet_ddetr.evaluation.backends import BACKENDS, evaluated_by
from mmdet_ddetr.evaluation.precision import COLUMNS, Precision
from mmdet_ddetr.registry import METRICS

IMAGES, SIZE = 24, (160, 200)  # (h, w); large is above 96 x 96 px
CLASSES = ('red', 'green', 'blue', 'absent')


def rectangle(box):
    mask = np.zeros(SIZE, np.uint8, order='F')
    x, y, w, h = (int(v) for v in box)
    mask[y : y + h, x : x + w] = 1
    mask[y, x : x + w // 2] = 0  # no rectangle any more: its IoU is not the box's
    encoded = mask_api.encode(mask)
    return dict(encoded, counts=encoded['counts'].decode())


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Objects of all sizes and a crowd; detections near them, some of them doubles, false, of equal scores or missing.

    Returns:
        the annotation file, and detections by image.
    """
    rng = np.random.default_rng(0)
    annotations, found = [], {image: [] for image in range(1, IMAGES + 1)}
    for image in range(1, IMAGES - 1):  # the last two hold no object
        for _ in range(rng.integers(1, 7)):
            w, h = np.array([10, 12]) * rng.choice([1, 5, 11]) + rng.integers(0, 8, 2)
            box = [*(rng.integers(0, [SIZE[1] - w, SIZE[0] - h])), w, h]
            box = [int(v) for v in box]
            category = int(rng.integers(1, 4))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=category,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=int(rng.random() < 0.1),
                    segmentation=rectangle(box),
                )
            )
            for _ in range(rng.integers(0, 3)):
                x, y, w, h = np.array(box) + rng.integers(-3, 4, 4)
                near = [int(np.clip(x, 0, SIZE[1] - w)), int(np.clip(y, 0, SIZE[0] - h)), int(w), int(h)]
                label = category - 1 if rng.random() < 0.8 else int(rng.integers(0, 3))
                found[image].append((near, label, round(float(rng.random()), 1)))
    found[IMAGES].append(([5, 5, 30, 30], 0, 0.95))
    found[3] = []
    path = tmp_path_factory.mktemp('data') / 'annotations.json'
    images = [dict(id=i, file_name=f'{i}.jpg', height=SIZE[0], width=SIZE[1]) for i in found]
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path, found


def results_of(path, found, backend, **kwargs):
    return evaluate(CocoMetric(str(path), ['bbox', 'segm'], backend=backend, **kwargs), found)


def evaluate(metric, found):
    metric.dataset_meta = dict(classes=CLASSES)
    for image, detections in found.items():
        boxes = torch.tensor([box for box, _, _ in detections]).float().view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [rectangle(box) for box, _, _ in detections]
        instances = dict(
            bboxes=boxes,
            scores=torch.tensor([score for _, _, score in detections]),
            labels=torch.tensor([label for _, label, _ in detections]).long(),
            masks=masks,
        )
        metric.process({}, [dict(img_id=image, ori_shape=SIZE, pred_instances=instances)])
    return metric.evaluate(len(found))


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=1e-6, err_msg=name)


def test_figures_of_the_metric(data):
    """Boxes and masks, each class and each size, by the names that pycocotools' have."""
    pytest.importorskip('faster_coco_eval')
    ours, theirs = (results_of(*data, backend, classwise=True) for backend in reversed(BACKENDS))
    same(ours, theirs)
    assert 0 < theirs['coco/bbox_mAP_s'] < 1 and theirs['coco/bbox_mAP_l'] > 0
    assert 0 < theirs['coco/segm_mAP'] != theirs['coco/bbox_mAP'] and np.isnan(theirs['coco/absent_precision'])
    same(*(results_of(*data, backend, metric_items=['mAP', 'AR@1000', 'AR_m@1000']) for backend in BACKENDS))


@pytest.mark.parametrize('backend', BACKENDS)
def test_what_the_metric_keeps(data, backend):
    """Only where it is asked to; from it come the curves of the report."""
    pytest.importorskip(backend)
    path, found = data
    metric = CocoMetric(str(path), ['bbox', 'segm'], backend=backend)
    evaluate(metric, found)
    assert metric.evaluations == {}
    metric.keep = True
    figures = evaluate(metric, found)
    assert set(metric.evaluations) == {'bbox', 'segm'}
    for kind, evaluation in metric.evaluations.items():
        precision = Precision.of(evaluation, [1, 2, 3, 4])
        for column, name in zip(COLUMNS, ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')):
            assert precision.figure(column) == pytest.approx(figures[f'coco/{kind}_{name}'], abs=5e-4)
        assert precision.curve(0.5, 0).shape == (101,)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('use_cats', [1, 0])
def test_all_that_is_computed(data, kind, use_cats):
    """The metric rounds to three digits; here are all of them, at each recall, threshold, class, area and number."""
    pytest.importorskip('faster_coco_eval')
    path, found = data
    evaluated = []
    predictions = [
        dict(image_id=image, category_id=label + 1, score=score)
        | (dict(bbox=box) if kind == 'bbox' else dict(segmentation=rectangle(box)))
        for image, detections in found.items()
        for box, label, score in detections
    ]
    for backend in BACKENDS:
        truth = COCO(str(path))
        with evaluated_by(backend):
            evaluation = coco_metric.COCOeval(truth, truth.loadRes([dict(p) for p in predictions]), kind)
        assert type(evaluation).__module__.startswith(backend)
        evaluation.params.maxDets, evaluation.params.useCats = [1, 2, 100], use_cats
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
        evaluated.append(dict(stats=evaluation.stats, **{k: evaluation.eval[k] for k in ('precision', 'recall')}))
    same(*evaluated)
    assert len(evaluated[0]['stats']) == 12 and evaluated[0]['precision'].max() > 0.5


def test_nothing_found(data):
    """No detection at all: no figures, whoever computes them."""
    pytest.importorskip('faster_coco_eval')
    path, found = data
    nothing = {image: [] for image in found}
    assert results_of(path, nothing, BACKENDS[1]) == results_of(path, nothing, BACKENDS[0]) == {}


def test_option(monkeypatch):
    """By a config; what is no backend, or not installed, is told at the start."""
    assert METRICS.build(dict(type='mmdet_ddetr.CocoMetric')).backend == 'pycocotools'
    with pytest.raises(ValueError, match='backend must be one of pycocotools, faster_coco_eval, got .faster'):
        METRICS.build(dict(type='mmdet_ddetr.CocoMetric', backend='faster'))
    monkeypatch.setattr(backends, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"backend='faster_coco_eval' needs .*: pip install faster-coco-eval"):
        CocoMetric(backend='faster_coco_eval')
    monkeypatch.setattr(backends, 'find_spec', lambda name: object())
    with pytest.raises(ValueError, match='use_mp_eval must be False'):
        CocoMetric(backend='faster_coco_eval', use_mp_eval=True)
