"""Detections beside objects: as pycocotools matches them, and by hand; precision as COCOeval has it."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet_ddetr.evaluation.matching import CLASS, IGNORED, NOTHING, PLACE, RIGHT, SECOND, Boxes, match
from mmdet_ddetr.evaluation.precision import COLUMNS, Precision

IDS = [7, 3, 9]  # of the categories, in the order of the labels; the last has no object


def boxes_of(entries, images=(0,)):
    return Boxes.of(entries, {image: image for image in images}, {id: label for label, id in enumerate(IDS)})


@pytest.fixture(scope='module')
def evaluation():
    """COCO's of random boxes in 30 images, with crowds, doubles, confusions and images without either."""
    rng = np.random.default_rng(1)
    objects, detections = [], []
    for image in range(30):
        for _ in range(rng.integers(0, 7) if image % 5 else 0):
            box = [*rng.integers(0, 60, 2), *rng.integers(8, 120, 2)]
            category = IDS[rng.integers(0, 2)]
            crowd = int(rng.random() < 0.15)
            entry = dict(image_id=image, category_id=category, bbox=list(map(float, box)), iscrowd=crowd)
            objects.append(dict(entry, id=len(objects) + 1, area=float(box[2] * box[3])))
            for _ in range(rng.integers(0, 4)):
                near = np.array(box) + rng.integers(-4, 5, 4)
                other = IDS[rng.integers(0, 2)] if rng.random() < 0.3 else category
                detections.append(dict(image_id=image, category_id=other, bbox=[float(v) for v in near]))
        for _ in range(rng.integers(0, 3)):
            box = [*rng.integers(0, 90, 2), *rng.integers(5, 60, 2)]
            detections.append(dict(image_id=image, category_id=IDS[rng.integers(0, 2)], bbox=list(map(float, box))))
    for score, detection in zip(rng.permutation(len(detections)), detections):
        detection['score'] = (score + 1) / (len(detections) + 1)
    coco = COCO()
    coco.dataset = dict(
        images=[dict(id=i) for i in range(30)],
        annotations=objects,
        categories=[dict(id=id, name=str(id)) for id in IDS],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        result = COCOeval(coco, coco.loadRes(detections), 'bbox')
        result.evaluate()
        result.accumulate()
        result.summarize()
    return result


def test_as_pycocotools_matches(evaluation):
    objects, detections = evaluation.cocoGt.dataset['annotations'], evaluation.cocoDt.dataset['annotations']
    found = match(boxes_of(objects, range(30)), boxes_of(detections, range(30)))
    expected, on_crowd = np.full(len(detections), -1), np.zeros(len(detections), bool)
    for part in evaluation.evalImgs:
        if part and part['aRng'] == evaluation.params.areaRng[0]:
            for id, object_id, ignored in zip(part['dtIds'], part['dtMatches'][0], part['dtIgnore'][0]):
                on_crowd[id - 1] = ignored
                expected[id - 1] = -1 if ignored or not object_id else object_id - 1
    assert (expected >= 0).sum() > 30 and on_crowd.sum() > 3
    np.testing.assert_array_equal(found.object_of, expected)
    np.testing.assert_array_equal(found.on_crowd, on_crowd)


def test_precision_has_the_figures_of_coco(evaluation):
    precision = Precision.of(evaluation, IDS)
    for column, expected in zip(COLUMNS, evaluation.stats[:6]):
        assert precision.figure(column) == pytest.approx(expected)
    own = evaluation.eval['precision'][0, :, 1, 0, -1]  # of id 7, which is the second in the order of the ids
    np.testing.assert_array_equal(precision.curve(0.5, 0), own)
    assert precision.figure('AP50', 0) == pytest.approx(own.mean())
    assert np.isnan(precision.figure('AP', 2)) and precision.curve(0.5, 2) is None
    both = (precision.curve(0.5, 0) + precision.curve(0.5, 1)) / 2
    np.testing.assert_allclose(precision.curve(0.5), both)
    assert precision.curve(None).mean() == pytest.approx(evaluation.stats[0])


def entry(label, box, score=1, crowd=0):
    return dict(image_id=0, category_id=IDS[label], bbox=box, score=score, iscrowd=crowd)


OBJECTS = [
    entry(0, [0, 0, 10, 10]),
    entry(1, [20, 0, 10, 10]),
    entry(0, [40, 0, 10, 10]),
    entry(1, [60, 0, 10, 10]),
    entry(0, [0, 50, 50, 50], crowd=1),
]
DETECTIONS = [
    entry(0, [0, 0, 10, 10], 0.9),  # right
    entry(0, [0, 0, 10, 9], 0.8),  # the same once more
    entry(0, [20, 0, 10, 8], 0.7),  # on a 1
    entry(0, [40, 0, 10, 3], 0.6),  # IoU 0.3
    entry(1, [80, 80, 10, 10], 0.95),  # nothing there
    entry(0, [5, 55, 10, 10], 0.99),  # on the crowd
    entry(1, [60, 0, 10, 10], 0.2),  # right, with a low score
]


@pytest.fixture
def found():
    return match(boxes_of(OBJECTS), boxes_of(DETECTIONS))


def test_by_hand(found):
    assert found.object_of.tolist() == [0, -1, -1, -1, -1, -1, 3]
    outcome = found.at(0.5)
    assert outcome.kind.tolist() == [RIGHT, SECOND, CLASS, PLACE, NOTHING, IGNORED, IGNORED]
    assert outcome.taken_for.tolist() == [0, 2, -1, -1, -1]
    assert outcome.missed.tolist() == [False, True, True, True, False]
    assert outcome.matrix(3).tolist() == [
        [1, 0, 0, 1],  # of two objects of class 0 one is missed
        [1, 0, 0, 1],
        [0, 0, 0, 0],
        [2, 1, 0, 0],
    ]
    assert found.at(0.1).matrix(3)[1].tolist() == [1, 1, 0, 0]
    assert found.score_of_objects().tolist() == [0.9, 0, 0, 0.2, 0]
    nothing = found.at(1.0)
    assert nothing.matrix(3)[:, :3].sum() == 0 and nothing.missed.sum() == 4


def test_an_object_is_not_taken_from_a_right_detection_by_a_wrong_one():
    """The wrong class has the higher score, yet the right one counts: it does for AP."""
    objects, detections = [OBJECTS[0]], [entry(1, [0, 0, 10, 10], 0.9), entry(0, [0, 0, 10, 10], 0.5)]
    found = match(boxes_of(objects), boxes_of(detections))
    assert found.at(0.4).kind.tolist() == [SECOND, RIGHT]
    assert found.at(0.6).kind.tolist() == [CLASS, IGNORED]


def test_best_score(found):
    """F1 from 0.95 on: 0; 0.9: 2 / (2 + 4); 0.2: 4 / (6 + 4), the highest."""
    assert found.best_score() == 0.2
    ties = [entry(0, [0, 0, 10, 10], 0.567), entry(1, [90, 90, 5, 5], 0.567)]
    assert match(boxes_of([OBJECTS[0]]), boxes_of(ties)).best_score() == 0.56
    assert match(boxes_of(OBJECTS), boxes_of([])).best_score() == 0.3
    assert match(boxes_of([]), boxes_of(DETECTIONS)).best_score() == 0.3


def test_nothing_at_all():
    outcome = match(boxes_of([]), boxes_of([])).at(0.3)
    assert outcome.matrix(3).tolist() == [[0] * 4] * 4 and not len(outcome.missed)
