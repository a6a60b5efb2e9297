"""COCO results, pandas and supervision hold the detections that were found."""

import json

import numpy as np
import pytest

from mmdet_ddetr.apis.results import CocoResults, to_pandas, to_supervision
from mmdet_ddetr.datasets import DataError
from mmdet_ddetr.export.runtime import Detections

CLASSES = ('cat', 'dog', 'cow')
MASKS = np.zeros((2, 4, 6), bool)
MASKS[0, 1:3, 2:5] = True
FOUND = Detections(np.array([[1.0, 2, 11, 22], [3, 4, 5, 6]]), np.array([0.9, 0.5]), np.array([2, 0]), MASKS)
NOTHING = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))


def annotations(tmp_path, images, categories):
    path = tmp_path / 'annotations.json'
    path.write_text(json.dumps(dict(images=images, categories=categories)))
    return path


CATEGORIES = [dict(id=7, name='cow'), dict(id=3, name='cat')]


def test_ids_are_those_of_the_annotation_file(tmp_path, monkeypatch):
    names = [(5, 'a.jpg'), (6, 'x/b.jpg'), (8, 'y/b.jpg'), (9, 'z/c.jpg')]
    path = annotations(tmp_path, [dict(id=id, file_name=name) for id, name in names], CATEGORIES)
    told = []
    monkeypatch.setattr('mmdet_ddetr.apis.results.print_log', lambda message, *args: told.append(message))
    results = CocoResults(tmp_path / 'out/results.json', path, CLASSES)
    assert told == [f'{path} has no category for dog: the COCO results leave them out']
    results.add('folder/a.jpg', FOUND)
    results.add('folder/y/b.jpg', NOTHING)
    results.add('/data/y/b.jpg', Detections(FOUND.boxes, FOUND.scores, np.array([1, 0])))  # the dog has no id
    results.add('c.jpg', Detections(FOUND.boxes[:1], FOUND.scores[:1], np.array([0])))
    for name, message in (('b.jpg', 'several images of this name'), ('d.jpg', 'no image of this name')):
        with pytest.raises(DataError, match=rf'{name}: .*annotations.json has {message}'):
            results.add(name, FOUND)
    results.close()
    found = json.loads((tmp_path / 'out/results.json').read_text())
    assert [(r['image_id'], r['category_id'], r['score']) for r in found] == [
        (5, 7, 0.9),
        (5, 3, 0.5),
        (8, 3, 0.5),
        (9, 3, 0.9),
    ]
    assert found[0]['bbox'] == [1, 2, 10, 20]
    from pycocotools import mask

    assert (mask.decode(found[0]['segmentation']) == MASKS[0]).all() and 'segmentation' not in found[2]


def test_pycocotools_reads_them(tmp_path):
    """The boxes as truth and as results: an AP of one."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = annotations(tmp_path, [dict(id=5, file_name='a.jpg', width=64, height=48)], CATEGORIES)
    results = CocoResults(tmp_path / 'results.json', path, CLASSES)
    results.add('a.jpg', Detections(*(x for x in (FOUND.boxes, FOUND.scores, FOUND.labels))))
    results.close()
    truth = json.loads(path.read_text())
    truth['annotations'] = [
        dict(id=i, image_id=5, category_id=id, bbox=box, area=box[2] * box[3], iscrowd=0)
        for i, (id, box) in enumerate([(7, [1, 2, 10, 20]), (3, [3, 4, 2, 2])], 1)
    ]
    path.write_text(json.dumps(truth))
    coco = COCO(path)
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / 'results.json')), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_results_without_any(tmp_path):
    """An image without detections is an empty list; no image is no file."""
    path = annotations(tmp_path, [dict(id=1, file_name='a.jpg')], CATEGORIES)
    for images in ([], ['a.jpg']):
        results = CocoResults(tmp_path / 'results.json', path, CLASSES)
        for image in images:
            results.add(image, NOTHING)
        results.close()
        assert (tmp_path / 'results.json').exists() == bool(images)
    assert json.loads((tmp_path / 'results.json').read_text()) == []


@pytest.mark.parametrize(
    ('categories', 'message'),
    [
        ([dict(id=1, name='tree')], 'has none of the classes of the detector: it has tree, the detector cat, dog, cow'),
        ([dict(id=1, name='cat'), dict(id=2, name='cat')], "two categories are called 'cat'"),
        ('none', "'categories' is a str"),
    ],
)
def test_annotations_that_do_not_fit(tmp_path, categories, message):
    with pytest.raises(DataError, match=message):
        CocoResults(tmp_path / 'results.json', annotations(tmp_path, [], categories), CLASSES)


def test_pandas():
    pytest.importorskip('pandas')
    frame = to_pandas(FOUND, CLASSES, 'a.mp4', 3)
    assert list(frame.columns) == ['path', 'frame', 'label', 'name', 'score', 'x1', 'y1', 'x2', 'y2']
    assert frame.iloc[0].tolist() == ['a.mp4', 3, 2, 'cow', 0.9, 1, 2, 11, 22]
    assert len(to_pandas(NOTHING, CLASSES)) == 0


def test_supervision():
    pytest.importorskip('supervision')
    found = to_supervision(FOUND, CLASSES)
    assert found.xyxy.tolist() == FOUND.boxes.tolist() and found.class_id.tolist() == [2, 0]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.5]) and (found.mask == MASKS).all()
    assert list(found.data['class_name']) == ['cow', 'cat']
    assert len(to_supervision(NOTHING, CLASSES)) == 0 and len(found[found.confidence > 0.6]) == 1
