"""Objects of other images in an image of a training."""

import json
import random

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmengine.registry import init_default_scope

from mmdet_ddetr.datasets import CocoDataset, PasteBoxes

COLOURS = dict(red=(0, 0, 200), blue=(200, 0, 0))
SIZE = 64


@pytest.fixture
def folder(tmp_path):
    """One image of a red object, one of a blue one and of a crowd, one of nothing."""
    images, annotations = [], []
    categories = [dict(id=1, name='red'), dict(id=2, name='blue')]
    boxes = {0: [('red', 4, 6, 12, 10, 0)], 1: [('blue', 30, 20, 9, 14, 0), ('red', 0, 0, 20, 8, 1)], 2: []}
    for i, objects in boxes.items():
        image = np.full((SIZE, SIZE, 3), 90, np.uint8)
        for name, x, y, w, h, crowd in objects:
            image[y : y + h, x : x + w] = COLOURS[name]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=1 + (name == 'blue'),
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=crowd,
                )
            )
        cv2.imwrite(str(tmp_path / f'{i}.png'), image)
        images.append(dict(id=i, file_name=f'{i}.png', width=SIZE, height=SIZE))
    (tmp_path / 'a.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return tmp_path


def dataset_of(folder, cls=CocoDataset, **options):
    init_default_scope('mmdet')
    pipeline = [
        dict(type='mmdet_ddetr.LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='mmdet_ddetr.PasteBoxes', **options),
        dict(type='PackDetInputs'),
    ]
    return cls(
        data_root=str(folder),
        ann_file='a.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=tuple(COLOURS)),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=pipeline,
    )


def boxes_of(sample):
    """(label, x1, y1, x2, y2) of all, and the image [H, W, 3]"""
    found = sample['data_samples'].gt_instances
    boxes = [(int(label), *map(int, box)) for label, box in zip(found.labels, found.bboxes.tensor.tolist())]
    return boxes, sample['inputs'].permute(1, 2, 0).numpy()


def test_pixels_and_boxes_belong_together(folder):
    dataset = dataset_of(folder, prob=1.0, max_hidden=0.0)
    random.seed(0)
    seen = set()
    for _ in range(60):
        boxes, image = boxes_of(dataset[2])
        for label, x1, y1, x2, y2 in boxes:
            assert (image[y1:y2, x1:x2] == COLOURS[('red', 'blue')[label]]).all()
            assert (x2 - x1, y2 - y1) == ((12, 10), (9, 14))[label]  # the crowd is never pasted
        assert (image != 90).any(-1).sum() == sum((x2 - x1) * (y2 - y1) for _, x1, y1, x2, y2 in boxes)
        seen.add(tuple(label for label, *_ in boxes))
    assert {(), (0,), (1,), (0, 1), (1, 0)} < seen  # the empty image is one of those that objects are taken from


def test_what_lies_in_a_box_keeps_its_label(folder):
    """A blue object within the red one, a crowd of which half does, and one of which less does."""
    coco = json.loads((folder / 'a.json').read_text())
    inner = [(2, [6, 8, 4, 4], 0), (1, [12, 12, 8, 2], 1), (2, [15, 14, 6, 2], 0)]
    coco['annotations'] = coco['annotations'][:1] + [
        dict(id=10 + i, image_id=0, category_id=category, bbox=box, area=box[2] * box[3], iscrowd=crowd)
        for i, (category, box, crowd) in enumerate(inner)
    ]
    coco['images'] = [coco['images'][0], coco['images'][2]]
    (folder / 'a.json').write_text(json.dumps(coco))
    dataset = dataset_of(folder, prob=1.0, max_boxes=1)
    random.seed(0)
    seen = set()
    for _ in range(60):
        sample = dataset[1]
        boxes, _ = boxes_of(sample)
        crowds = sample['data_samples'].ignored_instances.bboxes.tensor.tolist()
        if [label for label, *_ in boxes] == [0, 1]:
            (_, x, y, right, bottom), (_, *inside) = boxes
            assert (right - x, bottom - y) == (12, 10) and inside == [x + 2, y + 2, x + 6, y + 6]
            assert crowds == [[x + 8, y + 6, x + 12, y + 8]]
        seen.add(tuple(label for label, *_ in boxes))
    assert seen == {(), (0, 1), (1,)}  # the last: of a blue one alone, with nothing in it


def test_a_box_that_reaches_beyond_its_image(folder):
    """What is seen of it is pasted, and has its label, though it is less than half."""
    coco = json.loads((folder / 'a.json').read_text())
    coco['annotations'][0].update(bbox=[-30, -20, 40, 30], area=1200)
    coco['annotations'], coco['images'] = coco['annotations'][:1], [coco['images'][0], coco['images'][2]]
    (folder / 'a.json').write_text(json.dumps(coco))
    dataset = dataset_of(folder, prob=1.0, max_boxes=1)
    random.seed(0)
    found = [boxes_of(dataset[1])[0] for _ in range(30)]
    assert {(label, x2 - x1, y2 - y1) for boxes in found for label, x1, y1, x2, y2 in boxes} == {(0, 10, 10)}


def test_its_own_objects_stay_and_are_seen(folder):
    dataset = dataset_of(folder, prob=1.0, max_hidden=0.25)
    random.seed(1)
    more = 0
    for _ in range(60):
        (first, *others), _ = boxes_of(dataset[0])
        assert first == (0, 4, 6, 16, 16)
        for _, x1, y1, x2, y2 in others:
            covered = max(min(x2, 16) - max(x1, 4), 0) * max(min(y2, 16) - max(y1, 6), 0)
            assert covered <= 0.25 * 120
        more += len(others)
    assert more > 20


def test_share_of_images(folder):
    random.seed(2)
    changed = [len(boxes_of(dataset[1])[0]) for dataset in [dataset_of(folder, prob=0.0)] * 10]
    assert set(changed) == {1}  # the crowd is ignored by the sample
    dataset = dataset_of(folder, prob=0.5)
    changed = [len(boxes_of(dataset[0])[0]) > 1 for _ in range(300)]
    assert 0.35 < np.mean(changed) < 0.5  # half of the images, but where all others were empty or found no place


def test_the_seed_decides(folder):
    """Nothing is kept from one image to the next."""
    dataset = dataset_of(folder, prob=1.0)
    for seed in range(5):
        random.seed(seed)
        first = boxes_of(dataset[0])
        boxes_of(dataset[1])
        random.seed(seed)
        again = boxes_of(dataset[0])
        assert first[0] == again[0] and (first[1] == again[1]).all()


def test_where_there_is_no_room(folder):
    dataset = dataset_of(folder, prob=1.0)
    (paste,) = (transform for transform in dataset.pipeline.transforms if isinstance(transform, PasteBoxes))
    assert paste._place((70, 10), (SIZE, SIZE), []) is None
    assert paste._place((3, 10), (SIZE, SIZE), []) is None
    assert paste._place((SIZE, SIZE), (SIZE, SIZE), []) == [0, 0, SIZE, SIZE]
    assert paste._place((SIZE, SIZE), (SIZE, SIZE), [np.array([0, 0, 5, 5], np.float32)]) is None


def test_an_unreadable_other_image(folder):
    """It is told at its own turn."""
    (folder / '1.png').write_bytes(b'no image')
    (folder / '2.png').write_bytes(b'no image')
    dataset = dataset_of(folder, prob=1.0)
    random.seed(0)
    for _ in range(10):
        boxes, _ = boxes_of(dataset[0])
        assert {label for label, *_ in boxes} == {0}


def test_mistakes(folder):
    for name, value in dict(prob=1.5, max_hidden=-0.1, max_boxes=0, min_side=0).items():
        with pytest.raises(ValueError, match=f'PasteBoxes: {name} must be .* got {value}'):
            PasteBoxes(**{name: value})
    with pytest.raises(ValueError, match='PasteBoxes works in data sets of this package'):
        dataset_of(folder, MMDetCocoDataset)[0]
    with pytest.raises(ValueError, match='PasteBoxes pastes boxes, and no masks'):
        paste = PasteBoxes()
        paste.look_into([], [])
        paste.transform(dict(gt_masks=[]))
