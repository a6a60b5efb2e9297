"""Bad data gets an error that says what is wrong and where, before or while training; nothing is dropped unasked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmdet_ddetr.apis.data_check import check_folder
from mmdet_ddetr.datasets import (
    DataError,
    LoadImageFromFile,
    check_coco,
    check_splits,
    clean_coco,
    find_coco_folder,
    find_data,
)
from mmdet_ddetr.datasets.report import counted

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / 'shared' / 'data'
WIDTH, HEIGHT = 40, 30


def write_image(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


class Folder:
    """A sound data set of three images a split that tests damage: categories 1 and 3, a box of each in each image."""

    def __init__(
        self, root, ann_file='annotations/{split}.json', images='images/{split}', splits=('train', 'val', 'test')
    ):
        self.root, self.ann_file = root, ann_file
        self.images = {split: root / images.format(split=split) for split in splits}
        self.coco = {}
        for number, split in enumerate(splits):
            coco = dict(images=[], annotations=[], categories=[dict(id=1, name='cat'), dict(id=3, name='dog')])
            for i in range(3):
                write_image(self.images[split] / f'{split}_{i}.jpg', 10 * number + i)
                coco['images'].append(dict(id=i + 1, file_name=f'{split}_{i}.jpg', width=WIDTH, height=HEIGHT))
                for category_id in (1, 3):
                    box = dict(bbox=[2 * i, 3, 10, 12.5], area=125.0, iscrowd=0, category_id=category_id)
                    coco['annotations'].append(dict(id=len(coco['annotations']) + 1, image_id=i + 1, **box))
            self.coco[split] = coco
        self.save()

    def path(self, split):
        return self.root / self.ann_file.format(split=split)

    def save(self):
        for split, coco in self.coco.items():
            self.path(split).parent.mkdir(parents=True, exist_ok=True)
            self.path(split).write_text(json.dumps(coco))

    def check(self, split='train', **kwargs):
        self.save()
        return check_coco(self.path(split), self.images[split], **kwargs)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / 'data')


def rules(findings):
    return {finding.rule: finding.places for finding in findings}


def test_sound_data_passes(folder):
    report = folder.check()
    assert not report.errors and not report.warnings and not report.repairs
    assert report.classes == ('cat', 'dog') and report.max_boxes == 2
    assert 'fine' in report.findings[0].rule  # the gap between the ids 1 and 3
    assert check_splits({split: folder.check(split) for split in folder.coco}) == []


# -------------------------------------------------------------------------------------------------- damaged annotations
def no_annotations(folder, coco):
    coco['annotations'] = []


def category_in_the_gap(folder, coco):
    coco['annotations'][3]['category_id'] = 2


def zero_area_box(folder, coco):
    coco['annotations'][3]['bbox'] = [5, 5, 0, 8]


def negative_box(folder, coco):
    coco['annotations'][3]['bbox'] = [5, 5, 4, -8]


def huge_image_id(folder, coco):
    coco['images'][1]['id'] = 2**53
    for annotation in coco['annotations'][2:4]:
        annotation['image_id'] = 2**53


def huge_category_id(folder, coco):
    coco['categories'][1]['id'] = 10**18


def text_id(folder, coco):
    coco['images'][1]['id'] = '2'


def outside(folder, coco):
    coco['annotations'][3]['bbox'] = [WIDTH, 2, 5, 5]


def not_finite(folder, coco):
    coco['annotations'][3]['bbox'] = [5, float('nan'), 5, 5]


def three_numbers(folder, coco):
    coco['annotations'][3]['bbox'] = [5, 5, 5]


def no_bbox(folder, coco):
    del coco['annotations'][3]['bbox']


def too_thin(folder, coco):
    coco['annotations'][3]['bbox'] = [5, 5, 0.4, 9]


def unknown_image(folder, coco):
    coco['annotations'][3]['image_id'] = 77


def image_id_twice(folder, coco):
    coco['images'][1]['id'] = 1


def category_id_twice(folder, coco):
    coco['categories'][1]['id'] = 1


def category_name_twice(folder, coco):
    coco['categories'][1]['name'] = 'cat'


def no_file_name(folder, coco):
    del coco['images'][1]['file_name']


def missing_image(folder, coco):
    (folder.images['train'] / 'train_1.jpg').unlink()


def truncated_jpeg(folder, coco):
    path = folder.images['train'] / 'train_1.jpg'
    path.write_bytes(path.read_bytes()[:-300])


def truncated_png(folder, coco):
    path = folder.images['train'] / 'train_1.png'
    write_image(path, 0)
    path.write_bytes(path.read_bytes()[:-300])
    coco['images'][1]['file_name'] = 'train_1.png'


def garbage(folder, coco):
    (folder.images['train'] / 'train_1.jpg').write_bytes(b'<html>404 Not Found</html>' * 9)


def empty_file(folder, coco):
    (folder.images['train'] / 'train_1.jpg').write_bytes(b'')


def other_size(folder, coco):
    coco['images'][1]['width'] = 640


def turned_by_exif(folder, coco):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (WIDTH, HEIGHT)).save(folder.images['train'] / 'train_1.jpg', exif=exif)


def text_crowd(folder, coco):
    coco['annotations'][3]['iscrowd'] = 'yes'


def many_digits(folder, coco):
    coco['annotations'][3]['bbox'] = [5, 5, 10**400, 5]


def text_box(folder, coco):
    coco['annotations'][3]['bbox'] = [5, 5, '5', 5]


def list_image_id(folder, coco):
    coco['annotations'][3]['image_id'] = [2]


def bool_category_id(folder, coco):
    coco['annotations'][3]['category_id'] = True


def impossible_name(folder, coco):
    coco['images'][1]['file_name'] = 'a\0b.jpg'


def half_a_character(folder, coco):
    coco['images'][1]['file_name'] = 'a\ud800b.jpg'


def pipe(folder, coco):
    os.mkfifo(folder.images['train'] / 'pipe.jpg')
    coco['images'][1]['file_name'] = 'pipe.jpg'


def endless_device(folder, coco):
    coco['images'][1]['file_name'] = '/dev/zero'


def thin_image(folder, coco):
    cv2.imwrite(str(folder.images['train'] / 'thin.png'), np.zeros((1, 3000, 3), np.uint8))
    coco['images'][1].update(file_name='thin.png', width=3000, height=1)
    for annotation in coco['annotations'][2:4]:
        annotation['bbox'] = [0, 0, 9, 1]


# damage, the rule it breaks, a part of the place that is named, how many images and boxes --drop-bad leaves (None: it
# does not heal this)
ERRORS = [
    (no_annotations, 'no annotations', '', None),
    (category_in_the_gap, 'category_id that is not in categories', 'annotation 4 in image 2: category_id 2', (3, 5)),
    (zero_area_box, 'bbox without an area', 'annotation 4 in image 2 (train_1.jpg): bbox [5, 5, 0, 8]', (3, 5)),
    (negative_box, 'bbox without an area', 'annotation 4', (3, 5)),
    (huge_image_id, 'image id is not an integer in 0..9007199254740991', "'id': 9007199254740992", (2, 4)),
    (huge_category_id, 'category id is not an integer in 0..9007199254740991', '1000000000000000000', None),
    (text_id, 'image id is not an integer in 0..9007199254740991', "'id': '2'", (2, 4)),
    (outside, 'bbox outside the image', 'bbox [40, 2, 5, 5], image 40x30', (3, 5)),
    (not_finite, 'bbox with a number that is not finite, or beyond 1,000,000', 'bbox [5, nan, 5, 5]', (3, 5)),
    (three_numbers, 'bbox is not a list of four numbers', 'bbox [5, 5, 5]', (3, 5)),
    (no_bbox, 'annotation without bbox', 'annotation 4', (3, 5)),
    (too_thin, 'bbox thinner than 1 px', 'bbox [5, 5, 0.4, 9]', (3, 5)),
    (unknown_image, 'annotation of an image id that is not in images', 'annotation 4 in image 77', (3, 5)),
    (image_id_twice, 'image id given twice', 'id 1: train_0.jpg, train_1.jpg', (1, 2)),
    (category_id_twice, 'category id given twice', 'id 1, 2 times', None),
    (category_name_twice, 'category name given twice', "name 'cat', 2 times", None),
    (no_file_name, 'image without file_name', "'id': 2", (2, 4)),
    (missing_image, 'image that does not load', 'train_1.jpg): no such file', (2, 4)),
    (truncated_jpeg, 'image that does not load', 'train_1.jpg): the JPEG ends in the middle', (2, 4)),
    (truncated_png, 'image that does not load', 'train_1.png): the PNG ends before', (2, 4)),
    (garbage, 'image that does not load', 'train_1.jpg): not an image', (2, 4)),
    (empty_file, 'image that does not load', 'train_1.jpg): the file is empty', (2, 4)),
    (other_size, 'width and height are not the file', 'recorded as 640x30, the file is 40x30', (2, 4)),
    (text_crowd, 'iscrowd is neither 0 nor 1', "annotation 4 in image 2: iscrowd 'yes'", (3, 5)),
    (
        many_digits,
        'bbox with a number that is not finite',
        'annotation 4 in image 2 (train_1.jpg): bbox [5, 5, 1',
        (3, 5),
    ),
    (text_box, 'bbox is not a list of four numbers', "bbox [5, 5, '5', 5]", (3, 5)),
    (list_image_id, 'annotation of an image id that is not in images', 'annotation 4 in image [2]', (3, 5)),
    (bool_category_id, 'category_id that is not in categories', 'category_id True', (3, 5)),
    (impossible_name, 'image that does not load', r'a\x00b.jpg): not readable: its name has a character', (2, 4)),
    (half_a_character, 'image that does not load', r'a\ud800b.jpg): not readable: its name has a character', (2, 4)),
    (pipe, 'image that does not load', 'pipe.jpg): a pipe or device, expected a file', (2, 4)),
    (endless_device, 'image that does not load', '(/dev/zero): a pipe or device, expected a file', (2, 4)),
    (thin_image, 'image more than 100 times as long as wide', 'thin.png): 3000x1', (2, 4)),
    (turned_by_exif, 'width and height are not the file', 'the file is 30x40, turned by its EXIF orientation', (2, 4)),
]


@pytest.mark.parametrize(('damage', 'rule', 'place', 'left'), ERRORS, ids=[damage.__name__ for damage, *_ in ERRORS])
def test_error(folder, tmp_path, damage, rule, place, left):
    """The report names rule and place; training is refused; --drop-bad leaves out exactly what is bad, in a copy."""
    damage(folder, folder.coco['train'])
    report = folder.check()
    (found, places), *_ = ((key, value) for key, value in rules(report.errors).items() if key.startswith(rule))
    assert place in places[0]
    assert f'{found}' in str(report) and place in str(report)

    data = find_coco_folder(folder.root)
    with pytest.raises(DataError) as error:
        check_folder(data, tmp_path / 'work')
    assert rule in str(error.value) and place in str(error.value)
    assert ('--drop-bad' in str(error.value)) == (left is not None)

    before = folder.path('train').read_bytes()
    if left is None:
        with pytest.raises(DataError, match='does not heal|disagree'):
            check_folder(data, tmp_path / 'work', drop_bad=True)
    else:
        cleaned, reports, text = check_folder(data, tmp_path / 'work', drop_bad=True)
        assert cleaned.train.ann_file == tmp_path / 'work' / 'annotations' / 'train.json'
        assert cleaned.val == data.val  # was sound
        coco = json.loads(cleaned.train.ann_file.read_text())
        assert (len(coco['images']), len(coco['annotations'])) == left
        assert not reports['train'].errors
        lost = [(3 - left[0], 'image', 'images'), (6 - left[1], 'box', 'boxes')]
        said = ', '.join(counted(*each) for each in lost if each[0])
        assert f'\ntrain: {said} left out; the copy' in text and place in text
    assert folder.path('train').read_bytes() == before


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"images": [', 'is not JSON: .* in line 1'),
        ('[1, 2]', 'holds a list, expected a dict'),
        ('{"images": [], "annotations": []}', "'categories' is missing"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is a dict, expected a list"),
        ('{"images": [3], "annotations": [], "categories": []}', "'images' is a list, expected a list of dicts"),
        ('[' * 100000 + ']' * 100000, 'lists or dicts in it are nested too deeply'),
        ('{"images": [' + '1' * 5000, 'holds a number with too many digits'),
        ('{"images": "ä"}'.encode('latin-1'), 'is not JSON in UTF-8 .*: save it as UTF-8'),
    ],
    ids=['cut off', 'list', 'key missing', 'dict', 'numbers', 'deep', 'digits', 'encoding'],
)
def test_no_coco_file(folder, content, message):
    folder.path('train').write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as error:
        check_coco(folder.path('train'), folder.images['train'])
    assert str(folder.path('train')) in str(error.value)


# --------------------------------------------------------------------------------------------------- warnings and notes
def test_gaps_are_filled_in_a_copy(folder, tmp_path):
    """No area, no iscrowd, no size, ids from 0 (the COCO metric misses a box with id 0), categories out of order."""
    train = folder.coco['train']
    for number, annotation in enumerate(train['annotations']):
        del annotation['area'], annotation['iscrowd']
        annotation['id'] = number
    del train['images'][0]['width']
    train['categories'].reverse()
    report = folder.check()
    assert not report.errors and report.repairs
    _, reports, text = check_folder(find_coco_folder(folder.root), tmp_path)
    assert f'\ntrain: repaired, nothing is left out; the copy {tmp_path}' in text
    coco = reports['train'].coco
    assert [annotation['id'] for annotation in coco['annotations']] == [1, 2, 3, 4, 5, 6]
    assert {annotation['area'] for annotation in coco['annotations']} == {125.0}
    assert {annotation['iscrowd'] for annotation in coco['annotations']} == {0}
    assert coco['images'][0]['width'] == WIDTH
    assert reports['train'].classes == reports['val'].classes == ('cat', 'dog')
    assert not reports['train'].warnings


def test_annotation_ids_that_the_metric_mistakes(folder, tmp_path):
    train = folder.coco['train']
    train['annotations'][0]['id'] = 0
    train['annotations'][4]['id'] = 2
    del train['annotations'][5]['id']
    report = folder.check()
    (places,) = rules(report.warnings).values()
    assert places == ['annotation 0 in image 1', 'annotation 2 in image 3', 'annotation number 5 in image 3']
    cleaned = clean_coco(report, tmp_path / 'copy.json')
    assert not cleaned.warnings and [a['id'] for a in cleaned.coco['annotations']] == [1, 2, 3, 4, 5, 6]


def test_values_in_other_types_are_repaired(folder, tmp_path):
    """What means one thing only: sizes and ids as decimals or text, null, false; a name with a line break."""
    train = folder.coco['train']
    train['images'][0].update(width=str(WIDTH), height=float(HEIGHT))
    train['images'][1].update(width=None, height=[30], id=2.0)
    train['annotations'][0].update(area=None, iscrowd=None, id='7a')
    train['annotations'][1].update(area='125', iscrowd=False, id=2**64, image_id=1.0)
    train['annotations'][2].update(area=10**400, iscrowd=1.0, category_id=1.0)
    train['annotations'][3].update(segmentation=[[1, 'x']], note=json.loads('[' * 50 + ']' * 50))
    for coco in folder.coco.values():
        coco['categories'][0]['name'], coco['categories'][1]['name'] = 'big\ncat', 5
    folder.save()
    for split in folder.coco:
        path = folder.path(split)
        path.write_text(path.read_text(), encoding='utf-16' if split == 'val' else 'utf-8-sig')
    cleaned, reports, text = check_folder(find_coco_folder(folder.root), tmp_path)
    coco = json.loads(cleaned.train.ann_file.read_text())
    sizes = [value for image in coco['images'] for value in (image['width'], image['height'], image['id'])]
    assert sizes == [40, 30, 1, 40, 30, 2, 40, 30, 3] and all(type(size) is int for size in sizes)
    for key, values in dict(
        id=[1, 2, 3, 4, 5, 6],
        image_id=[1, 1, 2, 2, 3, 3],
        category_id=[1, 3] * 3,
        iscrowd=[0, 0, 1, 0, 0, 0],
        area=[125.0] * 6,
    ).items():
        found = [annotation[key] for annotation in coco['annotations']]
        assert found == values and all(type(one) is type(other) for one, other in zip(found, values)), key
    assert all(key not in annotation for annotation in coco['annotations'] for key in ('segmentation', 'note'))
    assert {report.classes for report in reports.values()} == {('big cat', '5')}
    assert not any(report.repairs or report.warnings for report in reports.values())
    for words in ('repaired, nothing is left out', "'big\\ncat'", 'nested more than 20 deep', 'not in plain UTF-8'):
        assert words in text


def test_other_sizes_are_told_as_they_stand(folder):
    folder.coco['train']['images'][0]['width'] = '640'
    folder.coco['train']['images'][1]['height'] = 30.5
    (places,) = rules(folder.check().errors).values()
    assert "recorded as '640'x30, the file is 40x30" in places[0] and 'recorded as 40x30.5' in places[1]


def test_file_names_that_lead_elsewhere(folder):
    """They are read, but not without a word."""
    folder.coco['train']['images'][0]['file_name'] = '../val/val_0.jpg'
    folder.coco['train']['images'][1]['file_name'] = str(folder.images['val'] / 'val_1.jpg')
    report = folder.check()
    places = rules(report.warnings)['file_name that leads out of the image folder']
    assert not report.errors and places[0] == 'image 1 (../val/val_0.jpg)' and len(places) == 2


def test_messages_stay_in_their_line(folder):
    """Names from the file can neither break the lines of the report nor move the cursor of a terminal."""
    folder.coco['train']['images'][0]['file_name'] = 'a\r\n  error \x1b[31m\u202e\udc00.jpg'
    folder.coco['train']['images'][1]['file_name'] = 'b' * 300 + '.jpg'
    text = str(folder.check())
    assert r'a\r\n  error \x1b[31m\u202e\udc00.jpg): not readable' in text and 'File name too long' in text
    assert all(line.isprintable() for line in text.split('\n')) and text.encode()


@pytest.mark.parametrize('boxed', [False, True], ids=['without boxes', 'with a box'])
def test_supercategory_with_the_name_of_a_class(folder, tmp_path, boxed):
    """As Roboflow exports them: category 0 stands above all; its boxes are those of the class of the same name."""
    for coco in folder.coco.values():
        for category in coco['categories']:
            category['supercategory'] = 'cat'
        coco['categories'].insert(0, dict(id=0, name='cat', supercategory='none'))
    if boxed:
        folder.coco['train']['annotations'][0]['category_id'] = 0
    folder.save()
    cleaned, reports, text = check_folder(find_coco_folder(folder.root), tmp_path)
    assert "'cat': id 0, the class is id 1" in text and '(one class in a copy)' in text
    for split in cleaned.splits:
        coco = json.loads(split.ann_file.read_text())
        assert [(c['id'], c['name']) for c in coco['categories']] == [(1, 'cat'), (3, 'dog')]
        assert [annotation['category_id'] for annotation in coco['annotations']] == [1, 3] * 3
    assert not reports['train'].warnings and reports['train'].classes == ('cat', 'dog')


@pytest.mark.parametrize('boxed', [False, True], ids=['without boxes', 'with a box'])
def test_supercategory_that_is_no_class(folder, tmp_path, boxed):
    """It is left out where no split has a box of it, and stays a class in all of them where one has."""
    for coco in folder.coco.values():
        for category in coco['categories']:
            category['supercategory'] = 'things'
        coco['categories'].insert(0, dict(id=0, name='things', supercategory='none'))
    if boxed:
        folder.coco['val']['annotations'][0]['category_id'] = 0
    folder.save()
    cleaned, reports, text = check_folder(find_coco_folder(folder.root), tmp_path)
    for report in reports.values():
        assert report.classes == (('things', 'cat', 'dog') if boxed else ('cat', 'dog'))
    assert ("id 0, 'things'" in text) == (not boxed)


def test_category_without_a_box_that_has_the_name_of_another(folder, tmp_path):
    for coco in folder.coco.values():
        coco['categories'].append(dict(id=7, name='dog'))
    folder.save()
    _, reports, text = check_folder(find_coco_folder(folder.root), tmp_path)
    assert "'dog': id 7, the one with boxes is id 3" in text and reports['val'].classes == ('cat', 'dog')


def test_which_category_of_a_name_has_boxes_is_told_by_all_splits(folder, tmp_path):
    """Of 'dog', id 3 and 7, the one with boxes is 3, though val has none of either."""
    for split, coco in folder.coco.items():
        coco['categories'].append(dict(id=7, name='dog'))
        if split == 'val':
            coco['annotations'] = [entry for entry in coco['annotations'] if entry['category_id'] != 3]
    folder.save()
    _, reports, text = check_folder(find_coco_folder(folder.root), tmp_path)
    assert text.count("'dog': id 7, the one with boxes is id 3") == 3
    assert all(report.classes == ('cat', 'dog') for report in reports.values())
    folder.coco['val']['annotations'][0]['category_id'] = 7  # each split has boxes of one alone
    folder.save()
    with pytest.raises(DataError) as error:
        check_folder(find_coco_folder(folder.root), tmp_path)
    assert str(error.value).count("category name given twice\n                    name 'dog', 2 times") == 3


def test_boxes_beyond_two_limits_of_one_size_are_counted_once(folder):
    train = folder.coco['train']
    train['annotations'] += [dict(train['annotations'][0], id=number) for number in range(7, 110)]
    report = folder.check(num_queries=100)
    twice, places = rules(report.warnings).values()
    assert twice[0] == 'annotation 7 in image 1 (train_0.jpg)' and len(twice) == 103
    assert places == ['image 1: 105']
    assert 'raise model.num_queries' in str(report) and "COCO's AP counts no more" in str(report)
    assert len(rules(folder.check(num_queries=104).warnings)) == 3


def test_the_copy_is_checked_without_reading_the_images_again(folder, tmp_path, monkeypatch):
    del folder.coco['train']['images'][0]['width']
    report = folder.check()
    monkeypatch.setattr('mmdet_ddetr.datasets.image_file.inspect_image', lambda *args: pytest.fail('read again'))
    assert clean_coco(report, tmp_path / 'copy.json').facts.keys() == {0, 1, 2}


def test_warnings(folder):
    train = folder.coco['train']
    train['annotations'][0]['bbox'] = [-4, 3, 10, 12]
    train['annotations'][1]['bbox'] = [0, 3, WIDTH + 0.9, 12]  # within the tolerance
    train['categories'].append(dict(id=9, name='unicorn'))
    shutil.copy(folder.images['train'] / 'train_0.jpg', folder.images['train'] / 'train_1.jpg')
    report = folder.check(num_queries=1)
    assert not report.errors
    found = rules(report.warnings)
    assert list(found) == [
        'the same picture more than once',
        'bbox sticks out of the image',
        'category without a box',
        'image with more boxes than 1',
    ]
    assert len(found['bbox sticks out of the image']) == 1
    assert found['category without a box'] == ["id 9, 'unicorn'"]
    assert len(found['image with more boxes than 1']) == 3 and 'raise model.num_queries' in str(report)


def test_crowds_and_empty_images_are_no_fault(folder):
    train = folder.coco['train']
    train['annotations'][0]['iscrowd'] = 1
    train['annotations'] = [annotation for annotation in train['annotations'] if annotation['image_id'] != 3]
    report = folder.check(num_queries=2)
    assert not report.errors and not report.warnings
    assert 'image without boxes' in rules(report.of_level('note'))


def test_nothing_but_crowds_is_no_training(folder, tmp_path):
    for entry in folder.coco['val']['annotations']:
        entry['iscrowd'] = 1
    folder.save()
    _, _, text = check_folder(find_coco_folder(folder.root), tmp_path)
    assert 'warning: val has no box that is not a crowd, 1 x\n    val: 6 boxes, all with iscrowd 1' in text
    for entry in folder.coco['train']['annotations'][1:]:
        entry['iscrowd'] = 1
    folder.save()
    check_folder(find_coco_folder(folder.root), tmp_path)  # one box is enough
    folder.coco['train']['annotations'][0]['bbox'][2] = 0  # but --drop-bad drops it
    folder.save()
    with pytest.raises(DataError, match='error: train has no box that is not a crowd') as error:
        check_folder(find_coco_folder(folder.root), tmp_path, drop_bad=True)
    assert 'without the bad images' not in str(error.value)


def test_splits_disagree(folder, tmp_path):
    folder.coco['val']['categories'][1]['name'] = 'Dog'
    folder.save()
    with pytest.raises(DataError, match="disagree on the categories(.|\n)*id 3: 'dog' in train, 'Dog' in val"):
        check_folder(find_coco_folder(folder.root), tmp_path, drop_bad=True)


def test_splits_share_a_renamed_image(folder):
    shutil.copy(folder.images['train'] / 'train_2.jpg', folder.images['val'] / 'val_0.jpg')
    (finding,) = check_splits({split: folder.check(split) for split in folder.coco})
    assert finding.level == 'warning' and finding.places == ['train_2.jpg = val_0.jpg']


def test_decode_finds_damage_in_the_middle(folder):
    """A PNG whose pixel data are wrong has a sound header and end."""
    path = folder.images['train'] / 'train_1.png'
    write_image(path, 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    folder.coco['train']['images'][1]['file_name'] = 'train_1.png'
    assert not folder.check().errors
    (places,) = rules(folder.check(decode=True).errors).values()
    assert 'train_1.png): does not decode: ' in places[0]


def test_long_lists_are_cut(folder):
    for annotation in folder.coco['train']['annotations'][:5]:
        annotation['bbox'] = [1, 1, 0, 0]
    text = str(folder.check())
    assert '5 x bbox without an area' in text and '... and 2 more' in text and text.count('bbox [1, 1, 0, 0]') == 3


# ------------------------------------------------------------------------------------------------------------- layouts
@pytest.mark.parametrize(
    ('ann_file', 'images'),
    [
        ('annotations/{split}.json', 'images'),
        ('annotations/{split}.json', 'images/{split}'),
        ('annotations/{split}.json', '{split}'),
        ('annotations/{split}.json', '.'),
        ('annotations/instances_{split}2017.json', '{split}2017'),
        ('annotations/instances_{split}.json', 'images'),
        ('{split}/_annotations.coco.json', '{split}'),
        ('{split}.json', 'images'),
    ],
)
def test_layouts(tmp_path, ann_file, images):
    folder = Folder(tmp_path, ann_file, images)
    (tmp_path / 'images').mkdir(exist_ok=True)  # empty or not, it misleads nobody
    found = find_coco_folder(tmp_path)
    assert found.has_test
    for split in found.splits:
        assert split.ann_file == folder.path(split.name)
        assert (split.image_dir / f'{split.name}_0.jpg').is_file()
        assert not check_coco(split.ann_file, split.image_dir).errors


def test_roboflow_calls_val_valid(tmp_path):
    folder = Folder(tmp_path, '{split}/_annotations.coco.json', '{split}', splits=('train', 'valid'))
    found = find_coco_folder(str(tmp_path))
    assert found.val.ann_file == folder.path('valid')
    assert not found.has_test and found.test == found.val and [split.name for split in found.splits] == ['train', 'val']


def test_no_such_layout(tmp_path):
    with pytest.raises(DataError, match='is missing, expected a folder'):
        find_coco_folder(tmp_path / 'nowhere')
    (tmp_path / 'labels').mkdir()
    (tmp_path / 'labels' / 'mine.json').write_text('{}')
    with pytest.raises(DataError, match=r'(?s)looked for: annotations/train.json.*found: labels/mine.json'):
        find_coco_folder(tmp_path)


def test_val_is_missing_or_split_off(tmp_path):
    folder = Folder(tmp_path / 'data', splits=('train', 'test'))
    with pytest.raises(DataError, match='none of a val split.*--val-fraction'):
        find_coco_folder(folder.root)
    found = find_data(folder.root, tmp_path / 'out', 0.34)
    parts = [json.loads(split.ann_file.read_text()) for split in (found.train, found.val)]
    assert [len(part['images']) for part in parts] == [2, 1] and [len(part['annotations']) for part in parts] == [4, 2]
    names = [{image['file_name'] for image in part['images']} for part in parts]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 3
    assert found.test.ann_file == folder.path('test')
    assert find_data(folder.root, tmp_path / 'again', 0.34).val.ann_file.read_bytes() == found.val.ann_file.read_bytes()
    with pytest.raises(DataError, match='--val-fraction is 1.5'):
        find_data(folder.root, tmp_path / 'out', 1.5)


# ------------------------------------------------------------------------------------------------------ while training
@pytest.mark.parametrize(
    ('damage', 'cause'),
    [
        (missing_image, 'no such file'),
        (truncated_jpeg, 'the JPEG ends in the middle of its pixels'),
        (garbage, 'not an image'),
        (empty_file, 'the file is empty'),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_loader_names_file_and_cause(folder, damage, cause):
    damage(folder, folder.coco['train'])
    path = str(folder.images['train'] / 'train_1.jpg')
    with pytest.raises(DataError, match=cause) as error:
        LoadImageFromFile()(dict(img_path=path, img_id=2))
    assert str(error.value).startswith(f'{path} (image id 2): ')
    assert LoadImageFromFile(ignore_empty=True)(dict(img_path=path, img_id=2)) is None


def test_loader_loads_as_mmcv_does(folder):
    from mmcv.transforms import LoadImageFromFile as Peer

    path = str(folder.images['train'] / 'train_1.jpg')
    for kwargs in ({}, dict(to_float32=True), dict(color_type='grayscale')):
        ours, theirs = (loader(**kwargs)(dict(img_path=path)) for loader in (LoadImageFromFile, Peer))
        assert ours.keys() == theirs.keys() and ours['img'].dtype == theirs['img'].dtype
        assert ours['img_shape'] == theirs['img_shape'] and ours['ori_shape'] == theirs['ori_shape']
        np.testing.assert_array_equal(ours['img'], theirs['img'])


def test_loader_is_registered():
    from mmdet.registry import TRANSFORMS

    assert TRANSFORMS.get('mmdet_ddetr.LoadImageFromFile') is LoadImageFromFile


def test_tool_refuses_without_a_traceback(folder, tmp_path):
    zero_area_box(folder, folder.coco['train'])
    folder.save()
    command = [sys.executable, REPO / 'tools' / 'finetune.py', '--data', folder.root, '--work-dir', tmp_path / 'work']
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    assert run.returncode == 1
    assert 'bbox without an area' in run.stderr and 'annotation 4 in image 2' in run.stderr
    assert 'Traceback' not in run.stderr
    assert not (tmp_path / 'work').exists()


# ----------------------------------------------------------------------------------------------------------- real data
@pytest.mark.parametrize('name', ['bccd', 'coco-mini'])
@pytest.mark.skipif(not SHARED.is_dir(), reason='the real data are not here')
def test_real_data_are_sound(name):
    reports = {s.name: check_coco(s.ann_file, s.image_dir) for s in find_coco_folder(SHARED / name).splits}
    assert all(not report.errors and not report.repairs for report in reports.values())
    assert check_splits(reports) == []
