"""report.html: figures that are right, nothing from outside, nothing that the data could inject, in any situation."""

import json
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub

from mmdet_ddetr.apis.data_check import inspect_folder
from mmdet_ddetr.apis.report import Training, images_of, write_report
from mmdet_ddetr.apis.report_mistakes import MAX_CLASSES
from mmdet_ddetr.apis.report_pictures import part_of
from mmdet_ddetr.datasets import find_data
from mmdet_ddetr.evaluation import CocoMetric

NASTY = '</text><script>alert(1)</script>'
WIDTH, HEIGHT = 160, 120


def write_data(root, classes, splits=('train', 'val', 'test'), n_images=4, times=1, noise=False):
    """COCO: two boxes an image, of the classes in turn; the last class of several has none in val and test."""
    rng = np.random.default_rng(0)
    width, height = WIDTH * times, HEIGHT * times
    for split in splits:
        (root / 'images' / split).mkdir(parents=True)
        images, boxes = [], []
        for i in range(n_images):
            name = f"{split} {i} & co's.png"
            pixels = rng.integers(0, 256, (height, width, 3) if noise else (6, 8, 3), np.uint8)
            cv2.imwrite(str(root / 'images' / split / name), cv2.resize(pixels, (width, height)))
            images.append(dict(id=i, file_name=name, width=width, height=height))
            for j in range(2):
                number = len(classes) if split == 'train' else max(len(classes) - 1, 1)
                box = [times * v for v in (10 + 70 * j, 10 + 5 * (i % 12), 40, 50)]
                entry = dict(bbox=box, area=box[2] * box[3], iscrowd=0, category_id=1 + len(boxes) % number)
                boxes.append(dict(entry, id=len(boxes) + 1, image_id=i))
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
        (root / f'{split}.json').write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return root


def evaluate(folder, classes, detections):
    """A metric after the test: of each image (boxes, scores, labels)."""
    metric = CocoMetric(str(folder.test.ann_file), 'bbox', classwise=True)
    metric.keep = True
    metric.dataset_meta = dict(classes=classes)
    for image, (boxes, scores, labels) in enumerate(detections):  # boxes as COCO has them
        corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        corners[:, 2:] += corners[:, :2]
        found = dict(bboxes=corners, scores=torch.tensor(scores), labels=torch.tensor(labels, dtype=torch.long))
        metric.process({}, [dict(img_id=image, ori_shape=(HEIGHT, WIDTH), pred_instances=found)])
    return metric, metric.evaluate(len(detections))


def found_in(folder):
    """Of each image its first object, and with a lower score the second: in odd images taken for the first class."""
    coco = json.loads(folder.test.ann_file.read_text())
    detections = []
    for image in coco['images']:
        first, second = (a for a in coco['annotations'] if a['image_id'] == image['id'])
        label = 0 if image['id'] % 2 else second['category_id'] - 1
        detections.append(([first['bbox'], second['bbox']], [0.9, 0.7], [first['category_id'] - 1, label]))
    return detections


def train(root, classes, detect=found_in, curves=True, **data):
    """As tools/finetune.py calls it, without a training."""
    folder = find_data(write_data(root / 'my data', classes, **data), root / 'work')
    check = inspect_folder(folder)
    folder, reports, _ = check.heal(root / 'work')
    classes = reports['train'].classes
    metric, metrics = evaluate(folder, classes, detect(folder))
    hub = MessageHub(str(root))
    for seconds in (0.5, 0.2, 0.2):
        hub.update_scalar('train/time', seconds)
        hub.update_scalar('test/time', seconds / 10)
    if curves:
        hub.update_info('curve/losses', {'loss': [[50, 100], [9.0, 4.0]]})
        hub.update_info('curve/metrics', {'coco/bbox_mAP': [[50, 100], [0.1, 0.4]]})
    work_dir = root / 'work'
    (work_dir / 'evaluation').mkdir(parents=True)
    table = (
        f'class,AP,AP50,AP75,APs,APm,APl\nall (coco/bbox),0.321,0.5,0.4,-,0.3,-\n{classes[0]},0.123,0.2,0.1,-,0.1,-\n'
    )
    (work_dir / 'evaluation' / 'iter_100.csv').write_text(table)
    checkpoint = work_dir / 'best_coco_bbox_mAP_iter_100.pth'
    checkpoint.write_bytes(b'0' * 1000)
    loaders = dict(train_dataloader=dict(batch_size=4), test_dataloader=dict(batch_size=1))
    runner = SimpleNamespace(
        cfg=Config(loaders),
        iter=100,
        train_loop=None,
        work_dir=str(work_dir),
        message_hub=hub,
        model=torch.nn.Linear(3, 4),
        test_loop=SimpleNamespace(evaluator=SimpleNamespace(metrics=[metric])),
    )
    options = dict(data=str(root / 'my data'), minutes=9.0)
    return Training(runner, check, folder, classes, metrics, checkpoint, work_dir / 'config.py', options, 8.9)


@pytest.fixture
def report(tmp_path):
    """``report(classes, ...)``: the page's path, and its text without tags."""

    def write(*args, ended='', **kwargs):
        training = train(tmp_path, *args, **kwargs)
        training.ended = ended
        path = write_report(training, tmp_path / 'report.html')
        page = path.read_text()
        assert not re.search(r'<script|https?:|href="(?!#|data:image/jpeg)|src=', page)
        assert '{{' not in page and 'nan' not in re.sub('base64,[^"]+', '', page)
        return path, re.sub(r'\s+', ' ', re.sub(r'<style>.*?</style>|<[^>]+>', ' ', page, flags=re.DOTALL))

    return write


def test_figures(report):
    """4 images with an object of each class: all cats are found, of the dogs 2, and 2 are taken for cats."""
    path, text = report(['cat', 'dog', 'none of these'])
    assert ' val 0.321 0.500 0.400 - 0.300 - ' in text, 'when the checkpoint was evaluated'
    assert 'AP of each class on val class AP AP50 AP75 APs APm APl cat 0.123 0.200 0.100 - 0.100 - ' in text
    assert 'Detections with a score of 0.69 or more' in text
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', path.read_text())
    assert [re.findall(r'>([\d·]*)</td>', row) for row in rows] == [
        ['4', '·', '·', '·', '4'],
        ['2', '2', '·', '·', '4'],
        ['·', '·', '·', '·', '0'],
        ['·', '·', '·', '', ''],
    ]
    assert 'dog taken for cat : 2 of 4 (50%)' in text
    assert re.search(r' cat 1.000 1.000 1.000 - 1.000 - 0.123 0.667 1.000 3 4 4 ', text)
    assert re.search(r'none of these - - - - - - - - - 2 0 0 ', text), text
    assert '20.0 images a second' in text and '20.0 ms an image' in text and '100 iterations' in text
    assert f'torch {torch.__version__}' in text
    assert text.count('labelled dog (IoU 1.00)') == 2 and text.count(': taken for cat') == 2


def test_hostile_names(report):
    path, text = report([NASTY, 'dog', 'a' * 255])
    assert NASTY not in path.read_text() and '&lt;script&gt;' in path.read_text()


@pytest.mark.parametrize('classes', [['cell'], [f'class {i}' for i in range(90)]], ids=['one', 'many'])
def test_number_of_classes(report, classes):
    path, text = report(classes)
    size = len(re.findall('<th scope="row">', path.read_text()))
    assert size == min(len(classes), MAX_CLASSES) + 1
    assert path.stat().st_size < 2e6
    if len(classes) > MAX_CLASSES:
        assert '75 others' in text


def test_nothing_detected(report):
    path, text = report(['cat', 'dog'], detect=lambda folder: [([], [], [])] * 4)
    assert 'Nothing was detected' in text and 'not found at any score' in text and '0.000 AP on test' in text
    assert ' explain ' not in text and 'At a score of 0.30, the usual one, as nothing is right at any' in text


def test_the_worst_misses_are_of_each_class(report):
    """Cats are larger than dogs, all of them are missed, and they take turns."""

    def detect(folder):
        coco = json.loads(folder.test.ann_file.read_text())
        for box in coco['annotations']:
            box['bbox'][2:] = [50, 60] if box['category_id'] == 1 else [20, 30]
        folder.test.ann_file.write_text(json.dumps(coco))
        return [([], [], [])] * 4

    path, _ = report(['cat', 'dog', 'none of these'], detect=detect)
    assert re.findall(r'<b>(\w+): not found at any score</b>', path.read_text()) == ['cat', 'dog'] * 4


def test_no_test_split(report):
    path, text = report(['cat', 'dog'], splits=('train', 'val'))
    assert 'There is no test split: val was tested' in text and 'AP on val' in text


def test_ended_early_without_curves(report):
    path, text = report(['cat', 'dog'], curves=False, ended='Ctrl-C ended the training after iteration 4')
    assert 'Ctrl-C ended the training after iteration 4' in text and 'Go on with this training' in text
    assert 'leaves out LearningCurvesHook' in text


def test_part_of_many_images(report, monkeypatch):
    monkeypatch.setattr('mmdet_ddetr.apis.report_results.MAX_IMAGES', 2)
    monkeypatch.setattr('mmdet_ddetr.apis.report_mistakes.SECONDS', 0)
    path, text = report(['cat'])
    assert 'Of 2 of the 4 images.' in text and path.read_text().count('<image ') == 1


def test_images_that_are_gone(tmp_path):
    training = train(tmp_path, ['cat', 'dog'])
    for path in training.folder.test.image_dir.iterdir():
        path.unlink()
    assert 'co&#x27;s.png: no such file' in write_report(training, tmp_path / 'report.html').read_text()


def test_images_of_the_split_alone(tmp_path):
    """``predict --source`` takes the images of a folder, not of those below it; none of the training's among them."""
    split = SimpleNamespace(image_dir=tmp_path, ann_file=tmp_path / 'a.json')
    for name in ('val/1.jpg', 'val/2.jpg', 'cam/1.jpg', 'mixed/1.jpg', 'mixed/2.jpg', 'train/1.jpg', '0.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    many = [f'val/{i}.jpg' for i in range(9)]
    for names, expected in (
        (['0.jpg'], ['']),
        (['val/1.jpg', 'cam/1.jpg', 'val/2.jpg'], ['cam', 'val']),
        (['val/1.jpg', 'mixed/2.jpg'], ['val/1.jpg', 'mixed/2.jpg']),
        ([*many, 'mixed/2.jpg'], many[:4]),
        ([f'{i}/a.jpg' for i in range(9)], [f'{i}/a.jpg' for i in range(4)]),
    ):
        images = [dict(file_name=name) for name in names]
        split.ann_file.write_text(json.dumps(dict(images=images, annotations=[], categories=[])))
        assert images_of(split) == [tmp_path / name for name in expected]


def test_part_of_an_image_around_a_box():
    assert part_of(1000, 500, [500, 250, 40, 20]) == (395, 166, 250, 188)
    assert part_of(1000, 500, [0, 0, 300, 90]) == (0, 0, 900, 500)
    assert part_of(90, 3000, [5, 2990, 50, 10]) == (0, 2438, 90, 562)


def test_large_pictures_make_no_large_page(report):
    """The worst case: noise, which a JPEG does not make small, and mistakes in every image."""

    def detect(folder):
        return [([[0.0, 0.0, 1000.0, 700.0]] * 2, [0.9, 0.8], [0, 1])] * 14

    path, _ = report(['cat', 'dog'], n_images=14, times=8, noise=True, detect=detect)
    assert path.read_text().count('<image ') == 6 + 12 + 12 and path.stat().st_size < 5e6


def test_page_in_a_browser(report, browser):
    path, _ = report(['cat', NASTY, 'none of these'])
    for width in (1200, 500):
        browser.send('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=False)
        browser.events.clear()
        browser.open(path.as_uri())
        assert browser.evaluate('document.querySelectorAll("svg image").length') == 8
        assert browser.evaluate('document.documentElement.scrollWidth') <= width
        assert not [event for event in browser.events if event.get('method') == 'Log.entryAdded']
        assert not [e for e in browser.events if e.get('method') == 'Network.loadingFailed']
        missing = '[...document.querySelectorAll("nav a")].filter(a => !document.querySelector(a.hash)).length'
        assert browser.evaluate(missing) == 0
