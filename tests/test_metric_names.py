"""Metrics of any name are followed by save_best, tables and curves."""

import csv
import json
import logging
import math
import re
import shutil

import cv2
import pytest
import torch
from mmdet.evaluation import CocoMetric, VOCMetric
from mmdet.evaluation.evaluator import MultiDatasetsEvaluator
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import METRICS
from terminaltables import AsciiTable
from training_case import CLASSES, Do, fork, losses, make_config, train, write_data
from voc import write_voc

from mmdet_ddetr import evaluation
from mmdet_ddetr.hooks import StartError
from mmdet_ddetr.hooks.evaluation_table import _ClassTables, make_table
from mmdet_ddetr.hooks.metric_names import check_names, main_figure, numbers, rule_of, split

COCO = [f'bbox_{item}' for item in ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')]


@pytest.mark.parametrize(
    ('keys', 'main'),
    [
        ([f'coco/{key}' for key in ('dark_precision', *COCO)], 'coco/bbox_mAP'),
        ([f'cells/{kind}_mAP{rest}' for kind in ('segm', 'bbox') for rest in ('_50', '')], 'cells/bbox_mAP'),
        (['lvis/bbox_AP50', 'lvis/bbox_AP', 'lvis/bbox_APr'], 'lvis/bbox_AP'),
        (['pascal_voc/AP50', 'pascal_voc/mAP'], 'pascal_voc/mAP'),
        (['coco_panoptic/SQ', 'coco_panoptic/PQ_th', 'coco_panoptic/PQ'], 'coco_panoptic/PQ'),
        (['a/coco/bbox_mAP', 'b/coco/bbox_mAP'], 'a/coco/bbox_mAP'),
        (['crowd_human/mMR', 'crowd_human/JI', 'crowd_human/mAP'], 'crowd_human/mAP'),
        (['coco/AR@100', 'coco/AR@300'], 'coco/AR@100'),
        (['f1', 'accuracy'], 'f1'),
    ],
)
def test_main_figure(keys, main):
    assert main_figure(keys) == main


@pytest.mark.parametrize(
    ('key', 'rule'),
    [
        ('coco/bbox_mAP', 'greater'),
        ('f1', 'greater'),
        ('coco/terrier_precision', 'greater'),
        ('val/loss', 'less'),
        ('loss_bbox', 'less'),
        ('mae', 'less'),
        ('count/RMSE', 'less'),
        ('crowd_human/mMR', 'less'),
    ],
)
def test_rule(key, rule):
    assert rule_of(key) == rule


def test_split():
    assert split('val_a/coco/bbox_mAP_50') == ('val_a/coco/bbox', 'AP50')
    assert split('lvis/segm_APr') == ('lvis/segm', 'APr')
    assert split('cityscapes/AP@50') == ('cityscapes', 'AP50')
    assert split('f1') == ('', 'f1')


def test_numbers():
    metrics = dict(a=1, b=torch.tensor(0.5), c=[1, 2], d='x', e=torch.ones(2), f=None)
    assert numbers(metrics) == dict(a=1.0, b=0.5)
    assert numbers(None) == {}


def test_table_of_two_sets_and_two_kinds():
    """Rows say what they are of; a class may be named like anything."""
    metrics = {
        'a/coco/bbox_mAP': 0.5,
        'a/coco/bbox_mAP_s': -1.0,
        'a/coco/traffic/light_precision': 0.5,
        'b/coco/segm_mAP': 0.25,
        'f1': -1.0,
    }
    classes = [
        ('b/coco/segm', 'traffic/light', dict(AP=0.25, AP50=0.3)),
        ('a/coco/bbox', 'traffic/light', dict(AP=math.nan, AP50=math.nan)),
        ('a/coco/bbox', 'square', dict(AP=0.125, AP50=0.2)),
    ]
    assert make_table(metrics, classes) == [
        ['class', 'AP', 'AP50', 'APs', 'f1'],
        ['all (a/coco/bbox)', '0.500', '-', '-', '-'],
        ['all (b/coco/segm)', '0.250', '-', '-', '-'],
        ['all', '-', '-', '-', '-1.000'],
        ['square (a/coco/bbox)', '0.125', '0.200', '-', '-'],
        ['traffic/light (b/coco/segm)', '0.250', '0.300', '-', '-'],
        ['traffic/light (a/coco/bbox)', '-', '-', '-', '-'],
    ]


def test_check_names(tmp_path):
    write_data(tmp_path)

    def coco(**kwargs):
        return CocoMetric(ann_file=str(tmp_path / 'annotations.json'), **kwargs)

    ours = evaluation.CocoMetric(ann_file=str(tmp_path / 'annotations.json'))

    class Own(BaseMetric):
        process = compute_metrics = None

    class More(CocoMetric):
        def compute_metrics(self, results):
            return {**super().compute_metrics(results), 'bbox_mAP_90': 0.5}

    class AsEver(CocoMetric):
        pass

    more, as_ever = (kind(ann_file=str(tmp_path / 'annotations.json')) for kind in (More, AsEver))

    for names, evaluator, certain in [
        (['auto'], Evaluator([coco()]), []),
        (['coco/segm_mAP_50'], Evaluator([coco(metric=['bbox', 'segm'])]), ['coco/segm_mAP_50']),
        (['cells/AR@100'], Evaluator([coco(metric='proposal', prefix='cells')]), ['cells/AR@100']),
        (['whatever'], Evaluator([coco(), Own()]), []),
        (['coco/bbox_mAP_90'], Evaluator([more]), []),
        (['coco/bbox_mAP'], Evaluator([as_ever]), ['coco/bbox_mAP']),
        (['pascal_voc/AP50', 'coco/bbox_mAP'], Evaluator([VOCMetric(), coco()]), ['coco/bbox_mAP']),
        (['b/coco/bbox_mAP'], MultiDatasetsEvaluator([coco(), coco()], ['a', 'b']), ['b/coco/bbox_mAP']),
    ]:
        assert check_names(names, evaluator) == (certain, '')
    warning = "save_best is 'coco/bbox_mAP'; the evaluation has pascal_voc/...; or take 'auto'"
    assert check_names(['coco/bbox_mAP'], Evaluator([VOCMetric()])) == ([], warning)
    for names, evaluator, complaint in [
        (['coco/bbox_map'], Evaluator([as_ever]), "Did you mean 'coco/bbox_mAP'?"),
        (['coco/bbox_map'], Evaluator([ours]), "Did you mean 'coco/bbox_mAP'?"),
        (['coco/bbox_mAp'], Evaluator([coco()]), "save_best is 'coco/bbox_mAp'.*Did you mean 'coco/bbox_mAP'?"),
        (['coco/bbox_mAP'], Evaluator([coco(prefix='cells')]), 'cells/bbox_mAP, .*Did you mean'),
        (['coco/bbox_mAP'], MultiDatasetsEvaluator([coco(), coco()], ['a', 'b']), 'mean ../coco/bbox_mAP'),
        (['auto'], Evaluator([coco(), coco()]), 'two metrics of the evaluator write .coco/bbox_mAP.: give each a pre'),
    ]:
        with pytest.raises(StartError, match=complaint):
            check_names(names, evaluator)


def test_class_names_with_line_breaks():
    header = ['category', 'mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
    rows = [['traffic\nlight', *['0.5'] * 6], ['a | b', 'nan', *['0.25'] * 5]]
    tables = _ClassTables()

    def log(text):
        return tables.filter(logging.makeLogRecord(dict(msg=text)))

    assert log('Evaluating bbox...')
    assert not log('\n' + AsciiTable([header, *rows]).table)
    assert [(group, name, figures['AP50']) for group, name, figures in tables.rows] == [
        ('bbox', 'traffic\nlight', 0.5),
        ('bbox', 'a | b', 0.25),
    ]


# ---------------------------------------------------------------------------- trainings


def short(data, work_dir, changes):
    """Two epochs, evaluated after each, with tables and curves."""
    common = {
        'train_cfg.max_epochs': 2,
        'train_cfg.val_interval': 1,
        'log_level': 'INFO',
        'default_hooks.curves': dict(_delete_=True, type='mmdet_ddetr.LearningCurvesHook'),
        'default_hooks.pictures': dict(_delete_=True, type='mmdet_ddetr.SamplePicturesHook', n_images=3),
    }
    return make_config(data, work_dir, common | changes)


def table(work_dir, iteration):
    return list(csv.reader((work_dir / f'evaluation/iter_{iteration}.csv').read_text().splitlines()))


def curves(work_dir):
    """Of the figures, from the last checkpoint."""
    checkpoint = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    return checkpoint['message_hub']['runtime_info']['curve/metrics']


@pytest.mark.slow
def test_voc(data, tmp_path):
    """The metric's pool of processes ends, and its figures are followed."""
    write_voc(tmp_path / 'VOC2007', 'all', data / 'annotations.json', data)
    dataset = dict(
        type='VOCDataset',
        data_root=str(tmp_path),
        ann_file='VOC2007/ImageSets/Main/all.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
    )
    changes = {
        f'{split}_dataloader.dataset.{key}': value for split in ('train', 'val') for key, value in dataset.items()
    }
    metric = dict(_delete_=True, type='VOCMetric', metric='mAP', iou_thrs=[0.5, 0.75])
    cfg = short(data, tmp_path, changes | {'val_evaluator': metric})
    assert fork(train, cfg) == 0
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert re.findall(r'^\| (\w+) ', log, re.MULTILINE)[:4] == ['class', 'dark', 'light', 'mAP']  # not VOC's names
    assert table(tmp_path, 6)[0] == ['class', 'AP', 'AP50', 'AP75']
    assert table(tmp_path, 6)[1][0] == 'all (pascal_voc)'
    assert set(curves(tmp_path)) == {f'pascal_voc/{key}' for key in ('mAP', 'AP50', 'AP75')}
    assert len(list(tmp_path.glob('best_pascal_voc_mAP_epoch_*.pth'))) == 1


class Errors(BaseMetric):
    """A user's, of names that nobody knows: the error shrinks."""

    errors = iter([3.0, 1.0])

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(mae=next(self.errors), text='nothing to follow')


@pytest.fixture
def user_metric(monkeypatch):
    monkeypatch.setitem(METRICS.module_dict, 'Errors', Errors)
    return {'val_evaluator': dict(_delete_=True, type='mmengine.Errors')}


def test_metric_of_the_user(data, tmp_path, user_metric):
    """Less is better. A misspelt name is said with those that there are; checkpoints are written all the same."""
    cfg = short(data, tmp_path, user_metric | {'default_hooks.checkpoint.save_best': 'mea'})
    assert fork(train, cfg) == 0
    assert {path.name for path in tmp_path.glob('*.pth')} == {'epoch_1.pth', 'epoch_2.pth', 'best_mae_epoch_2.pth'}
    assert table(tmp_path, 6) == [['class', 'mae'], ['all', '1.000']]
    assert curves(tmp_path) == dict(mae=[[3], [3.0]]) or curves(tmp_path) == dict(mae=[[3, 6], [3.0, 1.0]])
    log = next(tmp_path.glob('*/*.log')).read_text()
    told = "save_best is 'mea'; the evaluation has mae. Did you mean 'mae'? (kept instead: mae)"
    assert log.count(told) == 1


def test_misspelt_before_the_first_iteration(data, tmp_path):
    cfg = short(data, tmp_path, {'default_hooks.checkpoint.save_best': 'coco/bbox_map'})

    def run():
        with pytest.raises(StartError, match="save_best is 'coco/bbox_map'.* mean 'coco/bbox_mAP'?"):
            train(cfg)

    assert fork(run) == 0
    assert not (tmp_path / 'losses.txt').exists()


@pytest.mark.slow
def test_best_of_another_figure_is_no_scale(data, tmp_path):
    """Resumed with another save_best, whose values are smaller."""
    cfg = short(data, tmp_path, {'train_cfg.max_epochs': 1, 'default_hooks.checkpoint.save_best': 'high'})

    class Score(Do):
        priority = 'VERY_HIGH'

        def __init__(self):
            self.after_val_epoch = lambda runner, metrics: metrics.update(high=9.0, low=0.5)

    cfg.val_evaluator = [cfg.val_evaluator, dict(type='DumpDetResults', out_file_path=str(tmp_path / 'all.pkl'))]
    assert fork(train, cfg, [Score()]) == 0
    cfg.train_cfg.max_epochs = 2
    cfg.default_hooks.checkpoint.save_best = 'low'
    assert fork(train, cfg, [Score()], resume=True) == 0
    assert sorted(path.name for path in tmp_path.glob('best*')) == ['best_high_epoch_1.pth', 'best_low_epoch_2.pth']


@pytest.mark.slow
def test_two_validation_sets(data, tmp_path):
    """Told apart in table, curves and pictures, though their images have the same ids."""
    second = tmp_path / 'second'
    shutil.copytree(data, second)
    coco = json.loads((second / 'annotations.json').read_text())
    for annotation in coco['annotations']:
        annotation['category_id'] = 0
    (second / 'annotations.json').write_text(json.dumps(coco))
    cfg = short(data, tmp_path, {'default_hooks.pictures.n_images': 6})
    first = cfg.val_dataloader.dataset
    datasets = [first, dict(first, data_root=str(second))]
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=datasets)
    metrics = [dict(cfg.val_evaluator, ann_file=str(folder / 'annotations.json')) for folder in (data, second)]
    cfg.val_evaluator = dict(type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=['a', 'b'])
    assert fork(train, cfg) == 0
    rows = [row[0] for row in table(tmp_path, 6)]
    assert rows[1:3] == ['all (a/coco/bbox)', 'all (b/coco/bbox)']
    assert sorted(rows[3:]) == sorted(f'{name} ({part}/coco/bbox)' for name in CLASSES for part in 'ab')
    by_name = {row[0]: row[1] for row in table(tmp_path, 6)}
    assert by_name['light (b/coco/bbox)'] == '-' != by_name['light (a/coco/bbox)']
    assert {'a/coco/bbox_mAP', 'b/coco/bbox_mAP'} <= set(curves(tmp_path))
    assert len(list(tmp_path.glob('best_a_coco_bbox_mAP_epoch_*.pth'))) == 1
    assert list(losses(tmp_path)) == list(range(6))
    pictures = [cv2.imread(str(path)) for path in sorted(tmp_path.glob('*/vis_data/vis_image/*2_6.png'))]
    assert len(pictures) == 2 and pictures[0].shape == pictures[1].shape
    truths = [picture[:, : picture.shape[1] // 2] for picture in pictures]
    assert (truths[0] != truths[1]).any()  # the second's light boxes are called dark
