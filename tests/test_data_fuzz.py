"""Hundreds of broken COCO files: each is fine or refused in a sentence; what is cleaned can be loaded and evaluated."""

import copy
import json
import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.registry import init_default_scope

from mmdet_ddetr.datasets import DataError, check_coco, check_splits, clean_coco, drop_unused_groups, find_data
from mmdet_ddetr.datasets.image_file import ImageFacts, inspect_image

WIDTH, HEIGHT = 40, 30
VALUES = [
    *(None, True, False, 0, 1, 2, -1, 3.0, 2.5, 1e-300, 1e300, 10**17, 2**63, 10**400, -(10**400)),
    *(float('nan'), float('inf'), float('-inf'), '', '1', '40', 'cat', 'yes', 'a' * 5000, 'a\nb', 'a\0b', '\ud800'),
    *('../b.png', '/dev/zero', '.', '\u202ecat', [], [1], [[]], [None] * 4, [1, 2, 3, '4'], [1, 1, 10**400, 5]),
    *({}, {'a': 1}, {'counts': 3}, [[1, 2, 'x']], [True] * 4, [1, 1, 5, float('nan')], [0, 0, 1e8, 1e8]),
]
DEEP = '[' * 900 + ']' * 900  # Python's own limit is about 1,000
DEEPER = '[' * 100000 + ']' * 100000
REFUSED = []  # why


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz')
    rng = np.random.default_rng(0)
    for name in ('a.png', 'b.png', 'c.png'):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    os.mkfifo(folder / 'pipe')
    (folder / 'zero').symlink_to('/dev/zero')
    (folder / 'empty').touch()
    (folder / 'folder').mkdir()
    return folder


@pytest.fixture(autouse=True)
def quick_files(monkeypatch):
    """The pictures are read once for all cases."""
    known = {}

    def inspect(path, decode=False):
        key = str(path)
        if key not in known:
            try:
                known[key] = inspect_image(path, decode)
            except DataError as error:
                known[key] = error
        if isinstance(known[key], ImageFacts):
            return known[key]
        raise known[key]

    monkeypatch.setattr('mmdet_ddetr.datasets.image_file.inspect_image', inspect)


def sound():
    images = [
        dict(id=i, file_name=f'{name}.png', width=WIDTH, height=HEIGHT, license=1) for i, name in enumerate('abc', 1)
    ]
    annotations = [
        dict(
            id=number,
            image_id=1 + number // 2,
            category_id=1 + number % 2,
            bbox=[2.5 * number, 3, 10, 12],
            area=120,
            iscrowd=0,
            segmentation=[[1, 1, 9, 1, 9, 9]],
        )
        for number in range(1, 5)
    ]
    categories = [dict(id=i, name=name, supercategory='animal') for i, name in enumerate(('cat', 'dog'), 1)]
    return dict(info={}, images=images, annotations=annotations, categories=categories)


def nodes(value):
    """(container, key) of everything in a JSON tree."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from nodes(value[key])


def mutate(rng):
    """The bytes of a broken file."""
    coco = sound()
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        container, key = rng.choice(list(nodes(coco)))
        action = rng.random()
        if action < 0.7:
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif action < 0.8:
            del container[key]
        elif action < 0.9:
            other, other_key = rng.choice(list(nodes(coco)))
            container[key] = copy.deepcopy(other[other_key])
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = rng.choice(['pipe', 'zero', 'empty', 'folder', 'none.png', '@deep'])
    text = json.dumps(coco).replace('"@deep"', DEEP)
    if rng.random() < 0.05:
        text = text.replace('120', DEEPER, 1)
    data = text.encode(rng.choice(['utf-8'] * 8 + ['utf-8-sig', 'utf-16', 'utf-32']))
    if rng.random() < 0.08:
        start = rng.randrange(len(data))
        data = data[:start] + rng.randbytes(rng.choice([0, 1, 3])) + data[start + rng.choice([0, 1, 200, 10**6]) :]
    return data


def one_sentence(error):
    text = str(error)
    assert text and len(text) < 20000 and 'Traceback' not in text
    text.encode()  # can be printed
    assert all(line.isprintable() for line in text.split('\n'))


def evaluate(ann_file, image_dir):
    """Load, filter and pack the data as a training does, and score perfect predictions as an evaluation does."""
    init_default_scope('mmdet')
    classes = tuple(category['name'] for category in json.loads(Path(ann_file).read_text())['categories'])
    pipeline = [
        dict(type='mmdet_ddetr.LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(64, 48), keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    ]
    settings = dict(ann_file=str(ann_file), data_prefix=dict(img=str(image_dir)), metainfo=dict(classes=classes))
    train = CocoDataset(**settings, pipeline=pipeline, filter_cfg=dict(filter_empty_gt=False, min_size=0))
    val = CocoDataset(**settings, pipeline=pipeline, test_mode=True)
    metric = CocoMetric(ann_file=str(ann_file), metric='bbox', classwise=True)
    metric.dataset_meta = val.metainfo
    for index in range(len(train)):
        assert torch.isfinite(train[index]['data_samples'].gt_instances.bboxes.tensor).all()
    for index in range(len(val)):
        sample = val[index]['data_samples'].to_dict()
        instances = sample['gt_instances']
        scale = torch.tensor(sample['scale_factor'] * 2)
        instances = dict(
            bboxes=instances['bboxes'].tensor / scale,
            labels=instances['labels'],
            scores=torch.ones(len(instances['labels'])),
        )
        metric.process({}, [{**sample, 'pred_instances': instances}])
    return metric.evaluate(len(val))


def outcome(data, folder, tmp_path, deep):
    """'fine' or 'refused'; anything else raises."""
    ann_file = tmp_path / 'a.json'
    ann_file.write_bytes(data)
    try:
        report = check_coco(ann_file, folder, num_queries=1)
        reports = dict(train=report, val=report)
        drop_unused_groups(reports)
        check_splits(reports)
    except DataError as error:
        one_sentence(error)
        return 'refused'
    one_sentence(report)
    used = ann_file
    if report.errors or report.repairs:
        used = tmp_path / 'copy.json'
        try:
            cleaned = clean_coco(report, used)
        except DataError as error:
            one_sentence(error)
            return 'refused'
        one_sentence(cleaned)
        assert not cleaned.repairs and not cleaned.errors, str(cleaned)
    if deep:
        assert evaluate(used, folder)['coco/bbox_mAP'] > 0.9
    return 'fine'


@pytest.mark.parametrize('block', range(4))
def test_mutations(folder, tmp_path, capsys, block):
    outcomes = []
    for seed in range(100 * block, 100 * block + 100):
        try:
            outcomes.append(outcome(mutate(random.Random(seed)), folder, tmp_path, deep=seed % 4 == 0))
        except Exception as error:
            raise AssertionError(f'seed {seed}') from error
    assert min(outcomes.count('fine'), outcomes.count('refused')) >= 10


@pytest.mark.parametrize('key', ['id', 'file_name', 'width', 'height'])
def test_every_value_in_an_image(folder, tmp_path, key):
    for value in VALUES:
        coco = sound()
        coco['images'][1][key] = value
        assert outcome(json.dumps(coco).encode(), folder, tmp_path, deep=False) == 'fine'  # dropped, at most


@pytest.mark.parametrize('key', ['id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'segmentation', 'ignore'])
def test_every_value_in_an_annotation(folder, tmp_path, key):
    for value in VALUES:
        coco = sound()
        coco['annotations'][1][key] = value
        assert outcome(json.dumps(coco).encode(), folder, tmp_path, deep=False) == 'fine'


@pytest.mark.parametrize('key', ['id', 'name', 'supercategory'])
def test_every_value_in_a_category(folder, tmp_path, key):
    outcomes = set()
    for value in VALUES:
        coco = sound()
        coco['categories'][1][key] = value
        outcomes.add(outcome(json.dumps(coco).encode(), folder, tmp_path, deep=False))
    assert outcomes <= {'fine', 'refused'} and 'fine' in outcomes


def test_split_off_val(folder, tmp_path):
    (tmp_path / 'data' / 'annotations').mkdir(parents=True)
    for seed in range(150):
        (tmp_path / 'data' / 'annotations' / 'train.json').write_bytes(mutate(random.Random(seed)))
        try:
            find_data(tmp_path / 'data', tmp_path / 'out', 0.3)
        except DataError as error:
            one_sentence(error)
