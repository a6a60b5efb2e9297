"""The tables and the page of a check: right counts, nothing from outside, nothing that the data could inject."""

import json
import re
import sys

import cv2
import numpy as np
import pytest
from chromium import EXECUTABLE, Chromium

from mmdet_ddetr.apis.data_check import add_alike, inspect_folder
from mmdet_ddetr.apis.data_page import choose, write_data_page
from mmdet_ddetr.datasets import DataError, find_data
from mmdet_ddetr.datasets.summary import as_text, class_table, split_table

NASTY = '<img src=x onerror=alert(1)>'
WIDTH, HEIGHT = 60, 40


def scene(seed):
    return cv2.resize(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8), (WIDTH, HEIGHT))


@pytest.fixture
def folder(tmp_path):
    """COCO: 6 images with boxes of 10 x 20 px; a rare class in the last one; val has a copy of one of train."""
    root = tmp_path / 'pets'
    for split, count in (('train', 6), ('val', 2)):
        images, boxes = [], []
        for i in range(count):
            path = root / f'images/{split}/{i} & co.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), scene(i if split == 'train' else 5 * i + 3))
            images.append(dict(id=i, file_name=path.name, width=WIDTH, height=HEIGHT))
            for j in range(i):
                box = dict(bbox=[4 * j, 5, 10, 20], area=200, iscrowd=0, category_id=1 + (i == 5 and j == 0))
                boxes.append(dict(id=len(boxes) + 1, image_id=i, **box))
        categories = [dict(id=1, name='cat'), dict(id=2, name=NASTY)]
        (root / f'{split}.json').write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return root


@pytest.fixture
def check(folder, tmp_path):
    return inspect_folder(find_data(folder, tmp_path / 'work'))


def test_tables(check):
    assert split_table(check.reports)[1:] == [
        ['train', '6', '1', '15', '2.5', '5', '60x40', '14', '10'],
        ['val', '2', '1', '1', '0.5', '1', '60x40', '14', '10'],
    ]
    assert class_table(check.reports) == [['class', 'train', 'val'], ['cat', '14', '1'], [NASTY, '1', '0']]
    rows = [['class', 'n'], *([f'{i}', '7'] for i in range(30))]
    assert as_text(rows, 4).split('\n')[1:] == ['0      7', '1      7', '... 26 more', '28     7', '29     7']


def test_pictures_that_are_chosen_show_every_class(check):
    for seed in range(5):
        chosen = choose(check.reports['train'], 2, seed)
        assert chosen[0].file_name == '5 & co.png' and len(chosen) == 2
    assert len(choose(check.reports['train'], 100)) == 6


def test_images_of_val_that_are_like_one_of_train(check, folder, tmp_path):
    """A copy is told of once, as shared."""
    assert check.between[0].rule.startswith('train and val share images')
    add_alike(check)
    assert len(check.between) == 1
    path = folder / 'images/val/1 & co.png'
    cv2.imwrite(str(path), cv2.imread(str(folder / 'images/train/4 & co.png')) // 2 * 2)
    check = inspect_folder(find_data(folder, tmp_path / 'work'))
    add_alike(check)
    assert check.between[-1].places == ['val: 1 & co.png like 4 & co.png']


@pytest.fixture
def page(check, tmp_path):
    return write_data_page(check, tmp_path / 'work' / 'data.html')


def test_page_needs_nothing_and_runs_nothing(page):
    text = page.read_text()
    assert NASTY not in text and '&lt;img src=x' in text and '5 &amp; co.png' in text
    assert not re.search(r'<script|https?:|src="(?!data:image/jpeg)', text)
    assert text.count('<figure>') == 4 + 6 + 2 and 'smallest box: 10 x 20 px' in text and 'most boxes: 5' in text


@pytest.mark.skipif(EXECUTABLE is None, reason='no Chromium here')
def test_page_in_a_browser(page, tmp_path):
    for width in (1200, 500):  # Chromium has no smaller window
        browser = Chromium(tmp_path / str(width), (width, 900))
        try:
            browser.open(f'file://{page}')
            assert browser.evaluate('[...document.images].every(i => i.complete && i.naturalWidth > 0)')
            assert browser.evaluate('document.images.length') == 12
            assert browser.evaluate('document.documentElement.scrollWidth') <= width
            assert not [event for event in browser.events if event.get('method') == 'Log.entryAdded']
        finally:
            browser.close()


def test_the_tool_tells_of_no_categories(folder, tmp_path, monkeypatch):
    import finetune

    for split in ('train', 'val'):
        coco = json.loads((folder / f'{split}.json').read_text())
        (folder / f'{split}.json').write_text(json.dumps({**coco, 'categories': []}))
    monkeypatch.setattr(sys, 'argv', ['finetune.py'])
    with pytest.raises((SystemExit, DataError), match='1 x no categories'):
        finetune.main(['--data', str(folder), '--check', '--work-dir', str(tmp_path / 'out')])
    assert (tmp_path / 'out/data.html').is_file()


def test_the_tool_prints_the_table_and_writes_the_page(folder, tmp_path, monkeypatch, capsys):
    import finetune

    monkeypatch.setattr(sys, 'argv', ['finetune.py'])
    arguments = ['--data', str(folder), '--check', '--work-dir', str(tmp_path / 'out')]
    finetune.main(arguments)
    said = capsys.readouterr().out
    assert said.startswith(f'COCO in {folder}\n') and re.search(r'train +6 +1 +15 +2.5 +5 +60x40 +14 +10\n', said)
    assert f'pictures to look at: {tmp_path}/out/data.html' in said
    coco = json.loads((folder / 'train.json').read_text())
    coco['annotations'][0]['bbox'][2] = 0
    (folder / 'train.json').write_text(json.dumps(coco))
    (tmp_path / 'out/data.html').unlink()
    with pytest.raises(SystemExit) as error:
        finetune.main(arguments)
    assert 'bbox without an area' in str(error.value), 'a check with errors fails'
    assert 'bbox without an area' in (tmp_path / 'out/data.html').read_text(), 'the page is written all the same'
