"""A class is its name, from the annotation file to the weights on the Hugging Face hub and back.

A run of a few iterations each: the numbers of ids, their order and gaps, the order of the config and the number of
classes differ, and at every step a label has to mean the name that the file gave it.
"""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from training_case import runtime

from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.apis.runner import make_runner
from mmdet_ddetr.checkpoints import convert_checkpoint, files, load_checkpoint

CASES = {  # ids of the file's categories, in its order, and the classes of the config
    'ids shuffled, other order': (dict(red=7, green=3, blue=5), ('blue', 'red', 'green')),
    'one class of several': (dict(red=1, green=2, blue=3), ('green',)),
    'ids from 0': (dict(red=0, green=1, blue=2), ('green', 'blue', 'red')),
    'ids from 1, with gaps': (dict(red=1, green=18, blue=90), ('red', 'blue')),
    'one class': (dict(red=0), ('red',)),
}
SLOW = [case for case in CASES if case != 'one class of several']
PLACES = dict(red=(4, 6), green=(30, 8), blue=(12, 34))  # corner of each name's boxes
SIZE = 64


def write_data(folder, ids):
    """Three images; each name has a box at a place of its own."""
    folder.mkdir()
    images, boxes = [], []
    for image in range(1, 4):
        cv2.imwrite(str(folder / f'{image}.png'), np.full((SIZE, SIZE, 3), 40 * image, np.uint8))
        images.append(dict(id=image, file_name=f'{image}.png', width=SIZE, height=SIZE))
        for name, i in ids.items():
            box = [*PLACES[name], 20, 20]
            boxes.append(dict(id=len(boxes) + 1, image_id=image, category_id=i, bbox=box, area=400, iscrowd=0))
    categories = [dict(id=i, name=name) for name, i in ids.items()]
    (folder / 'a.json').write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))


def config_of(build, data, work_dir, classes, iterations, **settings):
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(SIZE, SIZE)),
        dict(type='PackDetInputs', meta_keys=meta_keys),
    ]
    dataset = dict(
        type='mmdet_ddetr.CocoDataset',
        data_root=str(data),
        ann_file='a.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=classes),
        pipeline=pipeline,
    )
    loader = dict(batch_size=3, num_workers=0, dataset=dataset)
    evaluator = dict(
        type='mmdet_ddetr.CocoMetric', ann_file=f'{data}/a.json', outfile_prefix=f'{work_dir}/found', classwise=True
    )
    cfg = runtime()
    cfg.update(
        model=build.config('refine', num_classes=len(classes)),
        train_dataloader=dict(loader, sampler=dict(type='InfiniteSampler')),
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=evaluator,
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-6)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=100),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        work_dir=str(work_dir),
        experiment_name=str(work_dir),  # mmengine keeps loggers by name
        log_level='ERROR',
        **settings,
    )
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.visualizer.name = str(work_dir)
    cfg.default_hooks.update(pictures=None, curves=None, evaluation_table=None)
    cfg.default_hooks.checkpoint.update(by_epoch=False, save_best=None)
    return cfg


class Named(Hook):
    """Asserts that every box of a training batch has the label of the name that stands at its place."""

    def __init__(self, classes):
        self.classes, self.seen = classes, 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for sample in data_batch['data_samples']:
            boxes = sample.gt_instances.bboxes.tensor.tolist()
            names = [self.classes[label] for label in sample.gt_instances.labels]
            assert {name: tuple(box[:2]) for name, box in zip(names, boxes)} == {n: PLACES[n] for n in self.classes}
            self.seen += 1


def train(cfg, classes, images):
    runner, named = make_runner(cfg), Named(classes)
    runner.register_hook(named)
    runner.train()
    assert named.seen == images
    return f'{cfg.work_dir}/iter_{cfg.train_cfg.max_iters}.pth'


def prefer(path, name):
    """Make a checkpoint's model find this class alone, wherever it looks."""
    checkpoint = torch.load(path, weights_only=False)
    label = checkpoint['meta']['dataset_meta']['classes'].index(name)
    for key, value in checkpoint['state_dict'].items():
        if 'cls_branches' in key and key.endswith('bias'):
            value.fill_(-9.0)[label] = 9.0
        elif 'cls_branches' in key:
            value.zero_()
    torch.save(checkpoint, path)


def found(inferencer, data):
    """Names of what an inferencer is sure of."""
    (prediction,) = inferencer(f'{data}/1.png')['predictions']
    classes = inferencer.model.dataset_meta['classes']
    sure = [label for label, score in zip(prediction['labels'], prediction['scores']) if score > 0.5]
    return {classes[label] for label in sure}


@pytest.mark.parametrize('case', [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES])
def test_from_file_to_hub_and_back(build, tmp_path, monkeypatch, case):
    ids, classes = CASES[case]
    data, work_dir, name = tmp_path / 'data', tmp_path / 'work', classes[-1]
    write_data(data, ids)

    path = train(config_of(build, data, work_dir, classes, 1), classes, images=3)
    path = train(config_of(build, data, work_dir, classes, 2, resume=True), classes, images=3)
    meta = torch.load(path, weights_only=False)['meta']
    assert tuple(meta['dataset_meta']['classes']) == classes

    prefer(path, name)
    reordered = classes[::-1]  # a test, too, goes by names
    for order in dict.fromkeys([classes, reordered]):
        test = make_runner(config_of(build, data, tmp_path / f'test-{order[0]}', order, 1, load_from=path))
        test.test()
        written = json.loads((tmp_path / f'test-{order[0]}/found.bbox.json').read_text())
        assert {item['category_id'] for item in written if item['score'] > 0.5} == {ids[name]}

    assert found(DDetrInferencer(weights=path, device='cpu', show_progress=False), data) == {name}

    folder = tmp_path / 'hub'
    files.write(convert_checkpoint(torch.load(path, weights_only=False), target='huggingface'), folder, 'huggingface')
    labels = json.loads((folder / 'config.json').read_text())['id2label']
    assert [labels[str(i)] for i in range(len(labels))] == list(classes)
    back = load_checkpoint(folder)
    assert tuple(back['meta']['dataset_meta']['classes']) == classes
    ours = torch.load(path, weights_only=False)['state_dict']
    assert all(torch.equal(value, ours[key]) for key, value in back['state_dict'].items() if 'cls_branches' in key)
    from_hub = DDetrInferencer(config_of(build, data, work_dir, classes, 1), folder, device='cpu', show_progress=False)
    assert found(from_hub, data) == {name}

    # fine-tuned to two classes, in a file with other ids: the row of the one that it knows
    both = ('new', name)
    ids_of_both = {name: 4, 'new': 2}
    monkeypatch.setitem(PLACES, 'new', (40, 40))
    write_data(tmp_path / 'both', ids_of_both)
    for weights in (path, f'{folder}/model.safetensors'):
        work = tmp_path / f'tuned-{weights[-3:]}'
        cfg = config_of(build, tmp_path / 'both', work, both, 1, load_from=weights)
        runner = make_runner(cfg)
        runner.register_hook(named := Named(both))
        runner.train()
        assert named.seen == 3
        bias = runner.model.bbox_head.cls_branches[-1].bias
        assert bias[1] > 8.9 and bias[0] < 0  # of "name" as it was, of "new" initialised
