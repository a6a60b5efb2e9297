"""Classes by name: of configs, annotation files, heads and checkpoints."""

import copy
import json
from types import SimpleNamespace
from unittest.mock import MagicMock
from xml.sax.saxutils import escape

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmdet.datasets import VOCDataset
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from training_case import make_config

from mmdet_ddetr.apis.class_table import check_classes
from mmdet_ddetr.apis.finetune import unfit_weights
from mmdet_ddetr.apis.inferencer import names_of
from mmdet_ddetr.apis.runner import make_runner
from mmdet_ddetr.datasets import CocoDataset, DataError, LoadImageFromFile
from mmdet_ddetr.datasets.class_names import categories_in, compare
from mmdet_ddetr.datasets.image_folders import check_images
from mmdet_ddetr.evaluation import CocoMetric
from mmdet_ddetr.heads import LabelGuard, check_labels
from mmdet_ddetr.hooks import ClassesHook
from mmdet_ddetr.hooks.classes import check_heads, class_counts, compare_dataset, compare_metric
from mmdet_ddetr.hooks.fit_checkpoint import hook_of

FILE = 'a.json'
BOX = {'red': (10, 10, 30, 30), 'green': (20, 30, 30, 30), 'blue': (5, 40, 50, 20)}  # x, y, w, h of each name


def write_coco(folder, categories, name='a.json'):
    """One image a category, with one box at the place that its name has in BOX."""
    images = [dict(id=i + 1, file_name=f'{i}.png', width=100, height=80) for i in range(len(categories))]
    boxes = [
        dict(id=i + 1, image_id=i + 1, category_id=c['id'], bbox=BOX[c['name']], area=900, iscrowd=0)
        for i, c in enumerate(categories)
    ]
    path = folder / name
    path.write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return path


def categories_of(names, ids):
    return [dict(id=i, name=name) for i, name in zip(ids, names)]


def load(path, *classes, type=CocoDataset):
    return type(str(path), metainfo=dict(classes=classes), data_prefix=dict(img=''))


def named_boxes(dataset):
    """{(x, y): the name that the dataset gives a box}"""
    classes = dataset.metainfo['classes']
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return {tuple(item['bbox'][:2]): classes[item['bbox_label']] for info in infos for item in info['instances']}


# --- names ------------------------------------------------------------------------------------------------------------


def test_comparison():
    def of(classes, names, **kwargs):
        found = compare(classes, names, FILE, **kwargs)
        return found.errors, found.doubts, found.notes

    assert of(('circle', 'square'), ['square', 'circle']) == ([], [], [])
    errors, doubts, notes = of(('circle', 'sqare'), ['circle', 'square'])
    assert not errors and not notes and "'sqare' (did you mean 'square'?)" in doubts[0]
    assert "metainfo=dict(classes=('circle', 'square'))" in doubts[0] and 'num_classes=2' in doubts[0]
    for near in ('Square', 'squares', ' square', 'square_', 'ｓｑｕａｒｅ'):  # the last in wide letters
        assert f'{near!r} (did you mean' in of(('circle', near), ['circle', 'square'])[1][0]
    assert of(('Circle', 'Square'), ['circle', 'square'])[1]  # all of them

    errors, _, _ = of(('person', 'car'), ['circle', 'square'])
    assert 'none of the 2 classes' in errors[0] and "classes=('circle', 'square')" in errors[0]
    assert of(('circle',), [])[0] == ['a.json has no categories']

    _, _, notes = of(('circle', 'ring'), ['circle', 'star', 'square'])
    assert notes == [
        "a.json has no category for the class 'ring': no boxes there",
        "a.json: the boxes of 'star', 'square' are left out, as metainfo does not name these categories",
    ]
    coco = MMDetCocoDataset.METAINFO['classes']
    assert of(coco, ['person', 'helmet'])[2] and not of(coco, ['person', 'helmet'])[1]  # meant: it was written
    assert 'no metainfo' in of(coco, ['person', 'helmet'], is_default=True)[1][0]
    assert not of(coco, ['person', 'dog'], is_default=True)[1]  # a part of COCO
    assert not of(coco, [*coco, 'helmet'], is_default=True)[1]


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        ('square', r"classes=\('square',\)"),
        (('square', 'circle', 'square'), "'square' more than once"),
        ((), 'expected a tuple of names'),
        ((0, 1), 'expected a tuple of names'),
    ],
)
def test_classes_that_are_none(tmp_path, classes, message):
    with pytest.raises(DataError, match=message):
        CocoDataset(str(write_coco(tmp_path, categories_of(BOX, (1, 2, 3)))), metainfo=dict(classes=classes))
    dataset = SimpleNamespace(metainfo=dict(classes=classes))
    (error,) = compare_dataset(dataset).errors  # of any type
    assert message.replace('\\', '') in error


@pytest.mark.parametrize('ensure_ascii', [True, False])
def test_categories_are_read_without_the_rest(tmp_path, ensure_ascii):
    categories = [dict(id=i, name=f'Straße {i} ' + 'x' * 400) for i in range(400)]  # more than one chunk
    rest = dict(images=[{}], annotations=[dict(note='the "categories" of')])
    for content in (dict(categories=categories, **rest), dict(rest, categories=categories)):
        path = tmp_path / 'a.json'
        path.write_text(json.dumps(content, ensure_ascii=ensure_ascii), encoding='utf-8')
        assert categories_in(path) == categories
        path.write_text(json.dumps(dict(info=dict(categories=[]), **content), ensure_ascii=ensure_ascii), 'utf-8')
        assert categories_in(path) == categories  # the word stands there twice


# --- data sets and metrics --------------------------------------------------------------------------------------------

ORDERS = {
    'from 0': (0, 1, 2),
    'from 1': (1, 2, 3),
    'with gaps': (3, 7, 90),
    'shuffled': (7, 3, 5),
}


@pytest.mark.parametrize('ids', ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize('classes', [('red', 'green', 'blue'), ('blue', 'red', 'green'), ('green',), ('blue', 'red')])
def test_labels_and_figures_follow_the_names(tmp_path, ids, classes):
    """The order of the config is neither that of the file nor that of its ids; every class is found at its boxes."""
    path = write_coco(tmp_path, categories_of(BOX, ids))
    dataset = load(path, *classes)
    assert named_boxes(dataset) == {BOX[name][:2]: name for name in classes}
    assert [name for i in dataset.cat_ids for name, j in zip(BOX, ids) if i == j] == list(classes)

    # a metric is told the right boxes with the right names; only those of the last class are found
    metric = CocoMetric(str(path), classwise=True)
    metric.dataset_meta = dataset.metainfo
    right = classes[-1]
    for index in range(3):
        x, y, w, h = BOX[list(BOX)[index]]
        found = dict(
            bboxes=torch.tensor([[x, y, x + w, y + h]]).float(),
            scores=torch.tensor([0.9]),
            labels=torch.tensor([len(classes) - 1]),
        )
        hit = list(BOX)[index] == right
        sample = dict(img_id=index + 1, ori_shape=(80, 100), pred_instances=found)
        if not hit:
            sample['pred_instances'] = {key: value[:0] for key, value in found.items()}
        metric.process({}, [sample])
    figures = metric.evaluate(3)
    assert {name: figures[f'coco/{name}_precision'] for name in classes} == {
        name: float(name == right) for name in classes
    }


def test_class_that_the_file_lacks(tmp_path):
    """Those behind it keep their labels, and a prediction of it is no error."""
    path = write_coco(tmp_path, categories_of(['red', 'blue'], (1, 2)))
    dataset = load(path, *BOX)
    assert named_boxes(dataset) == {BOX['red'][:2]: 'red', BOX['blue'][:2]: 'blue'}
    metric = CocoMetric(str(path), classwise=True)
    metric.dataset_meta = dataset.metainfo
    for image, label in ((1, 0), (2, 2), (1, 1)):
        x, y, w, h = list(BOX.values())[label]
        box = torch.tensor([[x, y, x + w, y + h]]).float()
        found = dict(bboxes=box, scores=torch.tensor([0.9]), labels=torch.tensor([label]))
        metric.process({}, [dict(img_id=image, ori_shape=(80, 100), pred_instances=found)])
    figures = metric.evaluate(3)
    assert figures['coco/bbox_mAP'] == 1.0
    assert np.isnan(figures['coco/green_precision'])


def test_categories_of_the_same_name(tmp_path):
    """A well-known export names a supercategory like its only class: boxes of both are of the class."""
    categories = [dict(id=0, name='red', supercategory='none'), dict(id=1, name='red', supercategory='red')]
    categories.append(dict(id=2, name='green'))
    dataset = load(write_coco(tmp_path, categories), 'red', 'green')
    assert dataset.cat_ids == [0, 2]
    assert [dataset.get_data_info(i)['instances'][0]['bbox_label'] for i in range(3)] == [0, 0, 1]


def test_mmdets_types_are_refused_where_they_would_swap_names(tmp_path):
    """And accepted where they would not."""
    path = write_coco(tmp_path, categories_of(BOX, (1, 2, 3)))

    def errors_of(*classes, file=path):
        dataset = load(file, *classes, type=MMDetCocoDataset)
        metric = MMDetCocoMetric(str(file), classwise=True)
        return [found.errors for found in (compare_dataset(dataset), compare_metric(metric, dataset))]

    assert errors_of('red', 'green', 'blue') == [[], []]
    assert errors_of('red', 'blue') == [[], []]
    for errors in errors_of('blue', 'red'):
        assert "metainfo=dict(classes=('red', 'blue'))" in errors[0] and 'mmdet_ddetr.Coco' in errors[0]
    for errors in errors_of('red', 'yellow', 'green'):  # green would be yellow
        assert 'mmdet_ddetr.Coco' in errors[0]
    unsorted = write_coco(tmp_path, categories_of(BOX, (3, 1, 2)), 'unsorted.json')
    of_dataset, of_metric = errors_of('red', 'green', 'blue', file=unsorted)
    assert not of_dataset and 'not sorted by id' in of_metric[0]


@pytest.mark.parametrize(
    ('names', 'classes', 'expected'),
    [
        (['cat', 'dog', 'cat'], ('dog', 'cat'), None),
        (['cat', 'dog'], ('cat', 'dgo', 'dog'), 'no category for the class'),
        (['cat', 'dog'], ('cat', 'dogs'), "'dogs' (did you mean 'dog'"),
        (['cat', 'dog'], ('cat', 'dgo'), "'dgo' (did you mean 'dog'"),
        (['cat', 'kiwi'], None, 'no metainfo'),
        (['pear', 'kiwi'], None, 'none of the 20 classes'),
    ],
)
def test_voc(tmp_path, names, classes, expected):
    """An object whose name is no class is dropped by mmdet without a word."""
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'list.txt').write_text('\n'.join(f'{i}' for i in range(len(names))))
    for i, name in enumerate(names):
        box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>'
        part = f'<part><name>head</name>{box}</part>'
        (tmp_path / f'Annotations/{i}.xml').write_text(
            '<annotation><size><width>20</width><height>20</height></size>'
            f'<object><name>{escape(name)}</name>{box}{part}</object></annotation>'
        )
    dataset = VOCDataset(
        ann_file='list.txt',
        data_root=str(tmp_path),
        data_prefix=dict(sub_data_root=''),
        metainfo=classes and dict(classes=classes),
    )
    found = compare_dataset(dataset)
    sentences = [*found.errors, *found.doubts, *found.notes]
    assert bool(sentences) == (expected is not None)
    assert expected is None or expected in sentences[0]


# --- heads ------------------------------------------------------------------------------------------------------------


class Head(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        vars(self).update(settings)


def test_heads_of_every_kind():
    model = torch.nn.Module()
    model.backbone = Head(num_classes=1000)
    model.rpn_head = Head(num_classes=1)
    model.roi_head = torch.nn.Module()
    model.roi_head.bbox_head = torch.nn.ModuleList([Head(num_classes=3), Head(num_classes=80)])
    model.roi_head.mask_head = Head(num_classes=80, class_agnostic=True)
    model.dn_query_generator = Head(num_classes=80)
    model.panoptic_head = Head(num_things_classes=2, num_stuff_classes=1, num_classes=3)
    assert class_counts(model) == {
        'model.roi_head.bbox_head.0.num_classes': (3, 'all'),
        'model.roi_head.bbox_head.1.num_classes': (80, 'all'),
        'model.panoptic_head.num_things_classes': (2, 'things'),
        'model.panoptic_head.num_stuff_classes': (1, 'stuff'),
    }
    meta = dict(classes=('a', 'b', 'c'), thing_classes=('a', 'b'), stuff_classes=('c',))
    with pytest.raises(DataError, match=r'bbox_head\.1\.num_classes is 80, .* 3 classes.*bbox_head\.1\.num_classes=3'):
        check_heads(model, meta, 'train_dataloader')
    model.roi_head.bbox_head[1].num_classes = 2  # boxes of things only
    check_heads(model, meta, 'train_dataloader')
    with pytest.raises(DataError, match=r'num_stuff_classes=0'):
        check_heads(model, dict(classes=('a', 'b', 'c')), 'train_dataloader')


def test_label_without_a_class():
    """A sentence instead of an index that is out of range, from both places where a label is read first."""
    truth = [InstanceData(labels=torch.tensor([0, 1])), InstanceData(labels=torch.tensor([1, 5]))]
    metas = [dict(img_path='a.png'), dict(img_path='b.png')]
    check_labels(truth, metas, 6)
    with pytest.raises(ValueError, match=r'label 5 of b\.png .*num_classes is 2'):
        check_labels(truth, metas, 2)
    check_labels([InstanceData(labels=torch.zeros(2, device='meta'))], metas[:1], 2)  # nothing waits for a device


def test_labels_are_guarded_however_the_preprocessor_is_called():
    preprocessor = DetDataPreprocessor()
    preprocessor.register_forward_pre_hook(LabelGuard(2), with_kwargs=True)
    sample = DetDataSample(gt_instances=InstanceData(labels=torch.tensor([5])), metainfo=dict(img_path='b.png'))
    data = dict(inputs=[torch.zeros(3, 4, 4)], data_samples=[sample])
    for args, kwargs in (((data, True), {}), ((data,), dict(training=True)), ((), dict(data=data, training=True))):
        with pytest.raises(ValueError, match=r'label 5 of b\.png'):
            preprocessor(*args, **kwargs)
    preprocessor(data=data)  # a prediction has no use for them


# --- in the runner ----------------------------------------------------------------------------------------------------


def config_of(data, work_dir, classes=None, ours=True, **changes):
    cfg = make_config(data, work_dir, changes)
    cfg.experiment_name = str(work_dir)  # mmengine keeps loggers by name
    cfg.log_level = 'WARNING'
    for name in ('train', 'val'):
        dataset = cfg[f'{name}_dataloader'].dataset
        if ours:
            dataset.type = 'mmdet_ddetr.CocoDataset'
            cfg.val_evaluator.type = 'mmdet_ddetr.CocoMetric'
        dataset.metainfo = classes and dict(classes=classes)
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, cfg.val_evaluator, dict(type='TestLoop')
    return cfg


WRONG = {
    'misspelt': (dict(classes=('dark', 'ligth')), r"'ligth' \(did you mean 'light'"),
    'none': (dict(classes=('a', 'b')), r"none of the 2 classes in metainfo, .*classes=\('dark', 'light'\)"),
    'no metainfo': (dict(), r"none of the 80 classes of the dataset type .*classes=\('dark', 'light'\)"),
    'no comma': (dict(classes='light'), r"classes=\('light',\)"),
    'mmdet, other order': (dict(classes=('light', 'dark'), ours=False), 'mmdet_ddetr.CocoDataset'),
    'mmdet, misspelt': (dict(classes=('dark', 'ligth'), ours=False), "did you mean 'light'"),
    'fewer': (
        dict(classes=('dark',)),
        r'model.bbox_head.num_classes is 2, but the data of \w+ have 1 class: .*--cfg-options \S+num_classes=1',
    ),
    'forgotten': (
        {'classes': ('dark', 'light'), 'model.bbox_head.num_classes': 80},
        r'model.bbox_head.num_classes is 80, but the data of \w+ have 2 classes',
    ),
    'too small': (
        {'classes': ('dark', 'light'), 'model.bbox_head.num_classes': 1},
        r'model.bbox_head.num_classes is 1, but the data of \w+ have 2 classes',
    ),
}
TESTED = ('misspelt', 'mmdet, other order', 'forgotten')


@pytest.mark.parametrize(('case', 'mode'), [*((case, 'train') for case in WRONG), *((case, 'test') for case in TESTED)])
def test_said_before_the_first_iteration(data, tmp_path, case, mode):
    settings, message = WRONG[case]
    runner = make_runner(config_of(data, tmp_path, **settings))
    runner.model.forward = None  # nothing may call it
    with pytest.raises(DataError, match=message):
        getattr(runner, mode)()
    (log,) = tmp_path.glob('*/*.log')
    assert 'did you mean' not in log.read_text()  # the error says it


def test_doubts_are_told_without_the_hook(data, monkeypatch):
    """Once, when the first image is loaded; whoever compares the classes tells them instead."""
    said = []
    monkeypatch.setattr('mmdet_ddetr.datasets.coco.print_log', lambda text, **kwargs: said.append(text))
    settings = dict(ann_file=str(data / 'annotations.json'), data_prefix=dict(img=str(data)))
    dataset, other = (CocoDataset(metainfo=dict(classes=('dark', 'ligth')), **settings) for _ in range(2))
    compare_dataset(other)
    assert not said
    for index in (0, 1):
        dataset[index], other[index]
    assert len(said) == 1 and "did you mean 'light'?" in said[0]


@pytest.mark.parametrize('name', ['train', 'val'])
def test_images_are_looked_for_before_the_first_iteration(data, tmp_path, name):
    cfg = config_of(data, tmp_path, ('dark', 'light'))
    cfg.val_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg[f'{name}_dataloader'].dataset.data_prefix = dict(img='images/trian/')
    runner = make_runner(cfg)
    runner.model.forward = None  # nothing may call it
    with pytest.raises(DataError, match=rf'{name}_dataloader: 6 of the 6 images .*no folder .*images/trian.*data_pref'):
        runner.train()
    with pytest.raises(DataError, match=f'{name}_dataloader: 6 of the 6'):
        check_classes(runner)


def test_images_of_a_remote_backend_are_not_looked_for(data):
    reader = LoadImageFromFile(backend_args=dict(backend='http'))
    info = dict(img_path='http://host/0.png')
    dataset = MagicMock(pipeline=SimpleNamespace(transforms=[reader]), ann_file=FILE, data_prefix={})
    dataset.__len__.return_value, dataset.get_data_info.return_value = 1, info
    check_images(dataset, 'val_dataloader')
    reader.backend_args = None
    info['img_path'] = str(data / '0.png')
    check_images(dataset, 'val_dataloader')
    info['img_path'] = str(data / 'other.png')
    with pytest.raises(
        DataError, match=r'val_dataloader: 1 of the 1 images of a\.json are missing, first .*other\.png'
    ):
        check_images(dataset, 'val_dataloader')


def test_loaders_of_other_classes(data, tmp_path):
    cfg = config_of(data, tmp_path, ('dark', 'light'))
    cfg.val_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.val_dataloader.dataset.metainfo = dict(classes=('light', 'dark'))
    with pytest.raises(DataError, match="label 0 would be 'dark' in one and 'light' in the other"):
        make_runner(cfg).train()


def test_every_runner_has_the_hook(data, tmp_path):
    """Also where the config brings hooks of its own; None leaves it out."""
    for hooks, expected in (
        (None, 1),
        (dict(classes=None), 0),
        (dict(classes=dict(type='mmdet_ddetr.ClassesHook')), 1),
    ):
        cfg = config_of(data, tmp_path / str(expected) / str(hooks)[:5], ('dark', 'light'))
        cfg.default_hooks = hooks
        assert sum(isinstance(hook, ClassesHook) for hook in make_runner(cfg).hooks) == expected


def test_wrappers_and_strictness(data):
    init_default_scope('mmdet')
    settings = dict(ann_file='annotations.json', data_root=str(data), data_prefix=dict(img=''))
    inner = MMDetCocoDataset(metainfo=dict(classes=('light', 'dark')), **settings)
    metainfo = dict(classes=('dark', 'ligth'))
    model = torch.nn.Linear(1, 1)

    def check(dataset, **kwargs):
        loops = dict(train=SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset)))
        return ClassesHook(**kwargs).check(model, loops)

    for wrapped in (RepeatDataset(inner, 2), ConcatDataset([inner, inner])):
        with pytest.raises(DataError, match='would be swapped'):
            check(wrapped)
    doubtful = CocoDataset(metainfo=metainfo, **settings)
    with pytest.raises(DataError, match='did you mean'):
        check(doubtful)
    assert 'did you mean' in check(doubtful, strict=False)[0]
    assert check(CocoDataset(metainfo=dict(classes=('light', 'dark')), **settings)) == []


def test_a_subset_is_a_warning(data, monkeypatch):
    said = []
    monkeypatch.setattr('mmdet_ddetr.datasets.coco.print_log', lambda text, **kwargs: said.append(text))
    load(data / 'annotations.json', 'light')
    assert "the boxes of 'dark' are left out" in said[0]


def test_table(data, tmp_path):
    """What `tools/train.py --check` prints: 'blue' is in no file."""
    cfg = config_of(data, tmp_path, ('light', 'blue', 'dark'), **{'model.bbox_head.num_classes': 3})
    runner = make_runner(cfg)
    weights = dict(state_dict=runner.model.state_dict(), meta=dict(dataset_meta=dict(classes=('dark', 'x', 'light'))))
    torch.save(weights, tmp_path / 'weights.pth')
    runner._load_from = str(tmp_path / 'weights.pth')
    lines = check_classes(runner).splitlines()
    assert lines[0] == 'label  class  train boxes  val boxes  test boxes'
    boxes = [line.split() for line in lines[1:4]]
    assert [row[:2] for row in boxes] == [['0', 'light'], ['1', 'blue'], ['2', 'dark']]
    truth = json.loads((data / 'annotations.json').read_text())['annotations']
    assert [int(row[2]) for row in boxes] == [sum(a['category_id'] == i for a in truth) for i in (1, None, 0)]
    assert 'model.bbox_head.num_classes = 3' in lines
    assert lines[-2].endswith('2 of 3 have a row in the checkpoint (light, dark); anew: blue')
    assert lines[-1] == 'warning: no boxes to learn from in train_dataloader: blue'


def test_names_in_the_checkpoint(data, tmp_path):
    """`--check`, `tools/finetune.py` and the training go by the same names."""
    cfg = config_of(data, tmp_path, ('dark', 'light'))
    cfg.default_hooks = dict(fit_checkpoint=dict(type='mmdet_ddetr.FitCheckpointHook', class_names={'dark': 'person'}))
    runner = make_runner(cfg)
    weights = {key: torch.randn(value.shape) for key, value in runner.model.state_dict().items()}
    torch.save(
        dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=('light', 'person')))), tmp_path / 'weights.pth'
    )
    runner._load_from = str(tmp_path / 'weights.pth')
    assert '2 of 2 have a row in the checkpoint (light, person)' in check_classes(runner).replace(
        '(person, light)', '(light, person)'
    )
    *_, notes = unfit_weights(runner.model, runner._load_from, ('dark', 'light'), hook_of(runner))
    assert '2 of 2' in notes[0]
    checkpoint = torch.load(runner._load_from)
    hook_of(runner).after_load_checkpoint(runner, checkpoint)
    key = next(key for key in weights if 'cls_branches.0' in key and key.endswith('bias'))
    assert checkpoint['state_dict'][key].tolist() == weights[key].tolist()[::-1]


def test_names_of_a_model():
    """The checkpoint's, the config's, COCO's; but none of another number of classes."""
    coco = MMDetCocoDataset.METAINFO['classes']
    head, checkpoint = Head(num_classes=2), dict(meta=dict(dataset_meta=dict(classes=('a', 'b'))))
    model = torch.nn.Module()
    model.bbox_head = head
    empty = ConfigDict(dataset=dict())
    written = ConfigDict(dataset=dict(dataset=dict(metainfo=dict(classes=('c', 'd')))))  # in a RepeatDataset
    assert names_of(model, checkpoint, written, coco) == ('a', 'b')
    assert names_of(model, {}, written, coco) == names_of(model, None, written, coco) == ('c', 'd')
    assert names_of(model, {}, empty, coco) == ('class 0', 'class 1')
    head.num_classes = 80
    assert names_of(model, checkpoint, written, coco) == coco
    assert names_of(torch.nn.Module(), checkpoint, empty, coco) == ('a', 'b')  # a model with other heads
