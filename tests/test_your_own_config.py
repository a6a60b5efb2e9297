"""The configs of docs/your_own_config.md, in this process; test_packaging.py follows the page with a wheel."""

import re

import pytest
from documented import ROOT, blocks
from training_case import fork
from voc import write_voc

from mmdet_ddetr import get_config
from mmdet_ddetr.apis.class_table import check_classes
from mmdet_ddetr.apis.runner import make_runner

CLASSES = ['circle', 'square', 'triangle', 'star', 'ring']


@pytest.fixture(scope='module')
def page(workspace, tmp_path_factory):
    """A folder with the configs of the page, and the data that they name."""
    folder = tmp_path_factory.mktemp('page')
    for block in blocks(ROOT / 'docs/your_own_config.md', 'python'):
        if match := re.match(r'# (\S+\.py)\n', block):
            (folder / match[1]).write_text(block)
    shapes = workspace / 'data/shapes'
    (folder / 'data').mkdir()
    (folder / 'data/shapes').symlink_to(shapes)
    for split in ('train', 'val'):
        voc = folder / 'data/voc/VOC2007'
        write_voc(voc, split, shapes / f'annotations/{split}.json', shapes / f'images/{split}')
    return folder


@pytest.fixture
def config(page, tmp_path, monkeypatch):
    """``config('my_small')``: one of them, with what a moment allows."""

    def config(name):
        monkeypatch.chdir(page)
        cfg = get_config(f'{name}.py')
        cfg.work_dir = cfg.experiment_name = cfg.visualizer.name = str(tmp_path)
        for split in ('train', 'val', 'test'):
            cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg.train_cfg.max_epochs = 1
        return cfg

    return config


@pytest.mark.parametrize('name', ['my_small', 'my_r50', 'my_voc'])
def test_data_classes_and_model_fit(config, name):
    """What `--check` looks at: every box has the name that the drawing had."""
    cfg = config(name)
    lines = check_classes(make_runner(cfg)).splitlines()
    assert lines[0] == 'label  class     train boxes  val boxes  test boxes'
    assert [line.split()[1] for line in lines[1:6]] == CLASSES
    assert sum(int(line.split()[2]) for line in lines[1:6]) > 8
    assert 'model.bbox_head.num_classes = 5' in lines
    assert f'train_dataloader: 8 images, {"VOC" if name == "my_voc" else "Coco"}Dataset' in lines


def test_a_config_of_the_page_with_a_path(config):
    assert config('my_r50_from_coco').load_from.endswith('_r50_coco.pth')


def test_voc_is_trained_and_evaluated(config, tmp_path):
    cfg = config('my_voc')
    cfg.train_dataloader.dataset.indices, cfg.val_dataloader.dataset.indices = 4, 2
    cfg.train_cfg.val_interval = 1
    assert fork(make_runner(cfg).train) == 0
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert re.findall(r'^\| (\w+) ', log, re.MULTILINE)[:6] == ['class', *CLASSES]
    assert 'pascal_voc/mAP: ' in log
