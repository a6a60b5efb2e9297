"""tools/finetune.py and what it is made of: config, schedule, pictures, and the whole at 64 px."""

import copy
import errno
import html
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from training_case import Do, fork

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import finetune
from mmdet_ddetr.apis.configs import ConfigError
from mmdet_ddetr.apis.data_check import check_folder
from mmdet_ddetr.apis.pictures import draw_boxes, write_comparisons
from mmdet_ddetr.checkpoints import CheckpointError
from mmdet_ddetr.datasets import DataError, find_coco_folder
from mmdet_ddetr.hooks import FitCheckpointHook

REPO = Path(__file__).parents[1]
CLASSES = ('circle', 'square', 'triangle', 'star', 'ring')
CONFIGS = ['deformable-detr-refine-twostage-dn_lite0_finetune', 'deformable-detr-refine-twostage_r50_16xb2-50e_coco']


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """12 / 4 / 3 pictures of 64 px."""
    out_dir = tmp_path_factory.mktemp('data') / 'shapes'
    sizes = ['--train', '12', '--val', '4', '--test', '3', '--size', '64']
    subprocess.run([sys.executable, REPO / 'tools' / 'make_shapes.py', out_dir, *sizes], check=True)
    return out_dir


@pytest.fixture(params=CONFIGS)
def cfg(request):
    return get_config(request.param)


# --------------------------------------------------------------------------------------------------------------- config
def test_configure(cfg, shapes):
    before = copy.deepcopy(cfg)
    folder = find_coco_folder(shapes)
    out = finetune.configure(cfg, folder, CLASSES)
    assert cfg.to_dict() == before.to_dict(), 'configure() changed its argument'
    for split in ('train', 'val', 'test'):
        dataset = out[f'{split}_dataloader'].dataset
        assert Path(dataset.ann_file) == shapes / 'annotations' / f'{split}.json'
        assert Path(dataset.data_prefix.img) == shapes / 'images' / split
        assert tuple(dataset.metainfo.classes) == CLASSES and len(set(dataset.metainfo.palette)) == 5
    for split in ('val', 'test'):
        assert Path(out[f'{split}_evaluator'].ann_file) == shapes / 'annotations' / f'{split}.json'
    assert out.model.bbox_head.num_classes == 5
    loader = cfg.train_dataloader.dataset.pipeline[0].type
    assert loader.startswith('mmdet_ddetr.LoadImage') and out.train_dataloader.dataset.pipeline[0].type == loader
    assert out.optim_wrapper.optimizer.lr == cfg.optim_wrapper.optimizer.lr
    assert finetune.length_of(out) == finetune.length_of(cfg)


def test_configured_data_load(shapes):
    """mmdet's datasets read what configure() has set: all images, the right labels, empty pictures included."""
    cfg = finetune.configure(get_config(CONFIGS[0]), find_coco_folder(shapes), CLASSES)
    init_default_scope('mmdet')
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    dataset = Runner.build_dataloader(cfg.train_dataloader, seed=0).dataset
    assert len(dataset) == 12 and dataset.metainfo['classes'] == CLASSES
    coco = json.loads((shapes / 'annotations' / 'train.json').read_text())
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        expected = [a['category_id'] - 1 for a in coco['annotations'] if a['image_id'] == info['img_id']]
        assert [instance['bbox_label'] for instance in info['instances']] == expected
        assert Path(info['img_path']).is_file()


def test_labels_follow_the_order_in_the_file(tmp_path, shapes):
    """mmdet numbers labels by the file's order, whatever the order of the classes given to it."""
    data = tmp_path / 'data'
    (data / 'annotations').mkdir(parents=True)
    (data / 'images').symlink_to(shapes / 'images')
    for split in ('train', 'val', 'test'):
        coco = json.loads((shapes / 'annotations' / f'{split}.json').read_text())
        if split == 'val':
            coco['categories'].reverse()
        (data / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
    folder, reports, text = check_folder(find_coco_folder(data), tmp_path / 'work')
    assert 'not sorted by id' in text and reports['train'].classes == CLASSES
    init_default_scope('mmdet')
    cfg = finetune.configure(get_config(CONFIGS[0]), folder, reports['train'].classes)
    cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
    dataset = Runner.build_dataloader(cfg.val_dataloader, seed=0).dataset
    dataset.full_init()
    assert dataset.cat2label == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}


def test_batch_size_and_lr(cfg, shapes):
    folder = find_coco_folder(shapes)
    old, batch_size = cfg.optim_wrapper.optimizer.lr, cfg.train_dataloader.batch_size
    out = finetune.configure(cfg, folder, CLASSES, batch_size=4 * batch_size)
    assert out.train_dataloader.batch_size == 4 * batch_size
    assert out.optim_wrapper.optimizer.lr == pytest.approx(2 * old)
    out = finetune.configure(cfg, folder, CLASSES, batch_size=4 * batch_size, lr=0.123)
    assert out.optim_wrapper.optimizer.lr == 0.123


def test_joined_datasets_are_refused(shapes):
    cfg = get_config('deformable-detr-refine-twostage-dn_lite0_pretrain')
    with pytest.raises(
        ConfigError, match='^train_dataloader: got a ConcatDataset of several datasets, expected a single'
    ):
        finetune.configure(cfg, find_coco_folder(shapes), CLASSES)


def test_schedule_is_stretched():
    cfg = get_config(CONFIGS[1])  # 50 epochs, a step at 40
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
        dict(type='MultiStepLR', by_epoch=True, begin=0, end=50, milestones=[40, 45], gamma=0.1),
        dict(type='CosineAnnealingLR', begin=25, end=50, T_max=25, convert_to_iter_based=True),
    ]
    cfg.train_cfg.val_interval = cfg.default_hooks.checkpoint.interval = 5
    finetune.set_length(cfg, 20)
    warmup, steps, cosine = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == 20
    assert (warmup.begin, warmup.end) == (0, 500)
    assert (steps.begin, steps.end, steps.milestones) == (0, 20, [16, 18])
    assert (cosine.begin, cosine.end, cosine.T_max) == (10, 20, 10)
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 2
    finetune.set_length(cfg, 1)
    assert cfg.param_scheduler[1].end == 1 and cfg.train_cfg.val_interval == 1


def test_schedule_in_iterations():
    cfg = get_config(CONFIGS[0])
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3000, val_interval=300)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=300),
        dict(type='MultiStepLR', by_epoch=False, begin=0, end=3000, milestones=[2400]),
    ]
    assert finetune.length_of(cfg) == (3000, 'iters')
    finetune.set_length(cfg, 1000)
    assert cfg.train_cfg.max_iters == 1000 and cfg.train_cfg.val_interval == 100
    assert cfg.param_scheduler[0].end == 100 and cfg.param_scheduler[1].milestones == [800]


def test_warmup_does_not_fill_a_short_training(shapes):
    """12 images, 4 at a time, 10 epochs: 30 iterations, of which a tenth may be warm-up."""
    cfg = get_config(CONFIGS[0])
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500)]
    out = finetune.configure(cfg, find_coco_folder(shapes), CLASSES, epochs=10, batch_size=4)
    assert out.param_scheduler[0].end == 3


@pytest.mark.parametrize(('iters', 'warmup', 'interval'), [(900, 90, 90), (100, 10, 20), (9, 1, 9)])
def test_iterations_of_a_config_that_counts_epochs(shapes, iters, warmup, interval):
    """30 epochs of 3 iterations, of which the config's warm-up of 100 would be more than all."""
    out = finetune.configure(get_config(CONFIGS[0]), find_coco_folder(shapes), CLASSES, iters=iters)
    linear, cosine = out.param_scheduler
    assert finetune.length_of(out) == (iters, 'iters') and (linear.end, cosine.end) == (warmup, iters)
    assert out.train_cfg.val_interval == interval
    assert out.default_hooks.checkpoint.interval == min(interval, 30)  # once an epoch, of which there are 30


def test_another_length_of_a_training_by_the_clock(shapes):
    """Its config.py is the start of another training: of its clock, only the plan stays."""
    folder = find_coco_folder(shapes)
    clocked = finetune.train_by_the_clock(finetune.configure(get_config(CONFIGS[0]), folder, CLASSES), 60)
    for cfg in (clocked, finetune.train_by_the_clock(finetune.configure(clocked, folder, CLASSES), 60)):
        out = finetune.configure(cfg, folder, CLASSES, iters=40)
        assert finetune.length_of(out) == (40, 'iters') and out.train_cfg.type == 'IterBasedTrainLoop'
        assert [scheduler.end for scheduler in out.param_scheduler] == [4, 40]


def test_counting_iterations_is_the_same_plan(shapes):
    """A cosine and a step in epochs give every iteration the learning rate that they give in iterations."""
    lrs = []
    for convert in (False, True):
        cfg = get_config(CONFIGS[1])
        cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size = 8, 3
        cfg.param_scheduler = [
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
            dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=8, convert_to_iter_based=True),
            dict(type='MultiStepLR', by_epoch=True, begin=0, end=8, milestones=[6], gamma=0.1),
        ]
        if convert:
            finetune.count_iterations(cfg, 12)
            assert finetune.length_of(cfg) == (32, 'iters') and cfg.train_cfg.val_interval == 4
            assert cfg.default_hooks.checkpoint.interval == 4
        lrs.append(learning_rates(cfg, n_iters=32, per_epoch=4))
    assert lrs[0] == pytest.approx(lrs[1])
    assert min(lrs[0]) < 0.02 * max(lrs[0])


def learning_rates(cfg, n_iters, per_epoch):
    """Of every iteration, by mmengine's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = []
    for item in cfg.param_scheduler:
        item = dict(item)
        cls = PARAM_SCHEDULERS.get(item.pop('type'))
        if item.pop('convert_to_iter_based', False):
            schedulers.append(cls.build_iter_from_epoch(optimizer=optimizer, epoch_length=per_epoch, **item))
        else:
            schedulers.append(cls(optimizer, **item))
    lrs = []
    for i in range(n_iters):
        lrs.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % per_epoch == 0:
                scheduler.step()
    return lrs


def test_train_by_the_clock(shapes):
    """The plan counts iterations, with its schedule as an argument of the loop; the argument stays."""
    cfg = finetune.configure(get_config(CONFIGS[0]), find_coco_folder(shapes), CLASSES, epochs=20, batch_size=3)
    before = copy.deepcopy(cfg)
    out = finetune.train_by_the_clock(cfg, 100.0, at_most=True)
    assert cfg.to_dict() == before.to_dict() and out.param_scheduler is None
    plan = out.train_cfg
    assert (plan.seconds, plan.max_iters, plan.val_interval, plan.test_images, plan.at_most) == (100, 80, 8, 3, True)
    linear, cosine = plan.schedule
    assert linear.end == 8 and cosine.end == 80 and not cosine.by_epoch
    assert out.default_hooks.checkpoint.interval == 4
    with pytest.raises(ValueError, match='no time is left to train'):
        finetune.train_by_the_clock(cfg, -6.0)


def test_palette():
    colours = finetune.palette(80)
    assert len(set(colours)) == 80 and all(0 <= value <= 255 for colour in colours for value in colour)
    distances = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colours[:6]) for b in colours[:i]]
    assert min(distances) > 100


def test_unfit_weights(tmp_path):
    source, model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 80)), torch.nn.Sequential()
    model.append(torch.nn.Linear(2, 3)).append(torch.nn.Linear(3, 5)).append(torch.nn.Linear(5, 1, bias=False))
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'weights.pth')
    assert finetune.unfit_weights(model, tmp_path / 'weights.pth', ('a',), FitCheckpointHook()) == (
        2,
        ['1.weight', '1.bias', '2.weight'],
        [],
    )


def test_start_that_cannot_be_read(tmp_path):
    """The error names the file once."""
    model, path = torch.nn.Linear(2, 3), tmp_path / 'weights.pth'
    for content, message in (
        (b'\x81' + np.random.default_rng(0).bytes(1000), 'cannot be read .*: it holds nothing that torch.save writes$'),
        (None, ': '),
    ):
        torch.save({'state_dict': {'other': torch.ones(7)}}, path) if content is None else path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f'^{re.escape(str(path))} ?{message}') as info:
            finetune.unfit_weights(model, path, ('a',), FitCheckpointHook())
        assert str(info.value).count(str(path)) == 1 and 'protocol' not in str(info.value)


def test_unlabelled_test_split(tmp_path, shapes):
    data = tmp_path / 'data'
    (data / 'annotations').mkdir(parents=True)
    (data / 'images').symlink_to(shapes / 'images')
    for split in ('train', 'val', 'test'):
        coco = json.loads((shapes / 'annotations' / f'{split}.json').read_text())
        if split == 'test':
            coco['annotations'] = []
        (data / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
    folder, _, text = check_folder(find_coco_folder(data), tmp_path / 'work')
    assert folder.test == folder.val and 'val takes its place' in text


# ------------------------------------------------------------------------------------------------------------- pictures
def test_draw_boxes():
    image = np.full((100, 480, 3), 50, np.uint8)
    drawn = draw_boxes(image, np.array([[100, 40, 200, 90]]), [1], ('cat', 'dog'), [(255, 0, 0), (0, 255, 0)])
    assert drawn.shape == image.shape and (image == 50).all()
    assert drawn[60, 100].tolist() == drawn[89, 150].tolist() == drawn[60, 199].tolist() == [0, 255, 0]
    assert drawn[65, 150].tolist() == drawn[60, 90].tolist() == [50, 50, 50]
    assert draw_boxes(np.zeros((64, 200, 3), np.uint8), np.zeros((0, 4)), [], (), []).shape == (192, 600, 3)


def test_text_grows_with_the_picture():
    """So that it is as large as ever when the whole picture is on the screen."""

    def inked(side):  # rows of the label above the box
        image = np.zeros((side, side, 3), np.uint8)
        box = np.array([[side // 2, side // 2, side - 10, side - 10]])
        drawn = draw_boxes(image, box, [0], ('cat',), [(255, 0, 0)], [0.5])
        return drawn[: side // 2 - max(side // 500, 2)].any((1, 2)).sum()

    small, usual, large = map(inked, (500, 1000, 4000))
    assert small == usual and 3.5 * usual < large < 4.5 * usual


class FakeInferencer:
    """Finds one box of class 3 with score 0.9 and one below the threshold."""

    class model:
        dataset_meta = dict(palette=finetune.palette(5))

    def __call__(self, paths):
        boxes = [[10.0, 10.0, 30.0, 30.0], [40.0, 40.0, 60.0, 60.0]]
        return dict(predictions=[dict(bboxes=boxes, labels=[3, 0], scores=[0.9, 0.1]) for _ in paths])


def test_write_comparisons(shapes, tmp_path):
    coco = json.loads((shapes / 'annotations' / 'train.json').read_text())
    coco['annotations'] = [
        dict(image_id=image['id'], category_id=2, bbox=[8, 8, 16, 24], iscrowd=0) for image in coco['images']
    ]
    written = write_comparisons(FakeInferencer(), coco, shapes / 'images' / 'train', tmp_path / 'out', n_images=4)
    assert [path.name for path in written] == [f'train_{i:06d}.jpg' for i in (1, 4, 7, 10)]
    for path in written:
        picture = cv2.imread(str(path))
        assert picture.shape == (512 + 26, 2 * (512 + 8), 3)
        left = picture[22:-4, 4 : 4 + 512].astype(int)
        right = picture[22:-4, 512 + 12 : -4].astype(int)
        square = np.array(finetune.palette(5)[1][::-1])
        assert np.abs(left[255, 130] - square).max() < 60 and np.abs(left[200, 191] - square).max() < 60
        star = np.array(finetune.palette(5)[3][::-1])
        circle = np.array(finetune.palette(5)[0][::-1])
        assert np.abs(right[160, 80] - star).max() < 60  # 8 times as large: the left edge at x = 80
        assert np.abs(right[400, 320] - circle).max() > 60  # the other is not drawn


def test_comparisons_of_images_with_one_name(shapes, tmp_path):
    """From two cameras, and in a format that only Pillow reads: no picture overwrites another."""
    coco = json.loads((shapes / 'annotations' / 'train.json').read_text())
    for i, image in enumerate(coco['images'][:3]):
        name = f'cam{i}/0001{".tga" if i == 2 else ".jpg"}'
        (tmp_path / f'cam{i}').mkdir()
        picture = Image.open(shapes / 'images' / 'train' / image['file_name'])
        picture.save(tmp_path / name)
        image['file_name'] = name
    coco['images'] = coco['images'][:3]
    written = write_comparisons(FakeInferencer(), coco, tmp_path, tmp_path / 'out')
    assert [path.name for path in written] == ['0001.jpg', 'cam1_0001.jpg', 'cam2_0001.jpg']
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [path.name for path in written]
    assert write_comparisons(FakeInferencer(), coco, tmp_path, tmp_path / 'out', n_images=0) == []


# ------------------------------------------------------------------------------------------------------------ the whole
TINY = [  # options that make the quick-start model small and start it from random weights
    '--cfg-options',
    'model.backbone.init_cfg=None',
    'model.encoder.num_layers=1',
    'model.decoder.num_layers=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
]


def run_tool(*args):
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, REPO / 'tools' / 'finetune.py', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_end_to_end(shapes, tmp_path):
    """Train two epochs, with a box to drop, evaluate, draw; everything lies where the last lines say."""
    data = tmp_path / 'data'
    (data / 'annotations').mkdir(parents=True)
    (data / 'images').symlink_to(shapes / 'images')
    for split in ('train', 'val', 'test'):
        coco = json.loads((shapes / 'annotations' / f'{split}.json').read_text())
        if split == 'train':
            coco['annotations'][0]['bbox'][2] = 0
        (data / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
    work_dir = tmp_path / 'work'
    common = ['--data', data, '--work-dir', work_dir, '--config', 'deformable-detr-refine-twostage_lite0_shapes']
    run = run_tool(*common, '--epochs', 2, '--batch-size', 6, '--pictures', 2, '--drop-bad', *TINY)
    assert run.returncode == 0, run.stderr
    assert 'train: 1 box left out; the copy' in run.stdout
    assert 'Training for 2 epochs on 12 images' in run.stdout and 'measured on the test split' in run.stdout
    assert re.search(r'epoch 2/2, iteration 4/4, loss [\d.]+, AP 0\.\d+, ', run.stderr)
    assert 'AP   AP50   AP75    APs    APm    APl' in run.stdout
    for name in CLASSES:
        assert re.search(rf'  {name} +(0\.\d+|-)\n', run.stdout)
    lies = dict(re.findall(r'^ *(checkpoint|config|log|pictures|metrics|report)  (.+)$', run.stdout, re.MULTILINE))
    assert len(lies) == 6 and all(Path(path).exists() for path in lies.values())
    metrics = json.loads(Path(lies['metrics']).read_text())
    assert metrics['split'] == 'test' and 0 <= metrics['coco/bbox_mAP'] <= 1
    assert len(list(Path(lies['pictures']).iterdir())) == 2
    assert Path(lies['config']).read_text().count("'ring'") >= 3
    assert run.stdout.rstrip().endswith(f'    report  {work_dir}/report.html')
    page = Path(lies['report']).read_text()
    assert 'data: a detector of 5 classes' in page and 'train: 1 x bbox without an area' in page
    assert page.count('<image ') >= 6 and 'left out the images and boxes that have errors' in page


@pytest.fixture
def start(monkeypatch, capfd):
    """``start(*args, at=None)``: the tool in a process of its own, Ctrl-C in iteration ``at``: code, stdout, stderr.

    With ``report=False`` its report fails. The weights that are tested are ``tested.pth``.
    """
    tool = load_tool(monkeypatch)
    monkeypatch.setattr(tool, 'RESERVE', 0)

    def call(*args, at=None, report=True):
        def run():
            if not report:
                monkeypatch.setattr('mmdet_ddetr.apis.report.results_of', lambda *args: 1 / 0)
            build_runner = finetune.build_runner

            def build(cfg):
                runner = build_runner(cfg)
                runner.register_hook(Do('before_train_iter', at, lambda runner: os.kill(os.getpid(), signal.SIGINT)))
                hook = Hook()
                hook.before_test_epoch = lambda runner: torch.save(runner.model.state_dict(), 'tested.pth')
                runner.register_hook(hook, 'LOWEST')
                return runner

            monkeypatch.setattr(finetune, 'build_runner', build)
            monkeypatch.setattr(sys, 'argv', ['finetune.py'])
            tool.main([str(arg) for arg in args])

        return fork(run), *capfd.readouterr()

    return call


@pytest.mark.slow
def test_ctrl_c_and_resume(shapes, tmp_path, monkeypatch, start):
    """By the clock, ended by Ctrl-C, gone on with from another folder by its work directory alone."""
    minutes, common = 0.25, ['--work-dir', tmp_path / 'work', '--resume', '--pictures', '1']
    monkeypatch.chdir(shapes.parent)
    config = ['--config', 'deformable-detr-refine-twostage_lite0_shapes', '--batch-size', '2']
    options = ['--data', shapes.name, *config, '--minutes', minutes, '--ema', *TINY]
    code, out, err = start(*common, *options, at=3, report=False)
    assert code == 0, out + err
    assert re.search(r'report  could not be written: ZeroDivisionError: .*\n\(traceback: .*\.log\)\n$', out)
    assert 'no checkpoint to resume from: the training starts at the beginning' in out
    assert 'SIGINT: ending the training after this iteration, then evaluating what is there; once more' in err
    assert 'Training for 0.25 minutes in all on 12 images, 2 at a time' in out
    assert 'Ctrl-C ended the training after iteration 4, and --resume goes on with it' in out
    assert 'best_coco_bbox_mAP_iter_4.pth' in out and 'measured on the test split' in out

    monkeypatch.chdir(tmp_path)
    code, out, err = start(*common)
    assert code == 0, out + err
    assert 'Going on with the training for 0.25 minutes in all on 12 images, 2 at a time' in out
    assert 'Ctrl-C' not in out and 'measured on the test split' in out
    kept = torch.load(re.search(r'checkpoint  (.+)', out)[1])
    for name, tensor in torch.load('tested.pth').items():  # the average, not the raw weights
        torch.testing.assert_close(tensor, kept['state_dict'][name], rtol=0, atol=0)
    assert re.search('^resume ?= ?False$', (tmp_path / 'work' / 'config.py').read_text(), re.MULTILINE)
    last = torch.load(sorted(tmp_path.glob('work/iter_*.pth'), key=lambda path: path.stat().st_mtime)[-1])
    budget = last['message_hub']['runtime_info']['budget']
    assert budget['progress'] == 1 and 0.5 < budget['elapsed'] / (60 * minutes) < 1.2
    assert last['meta']['iter'] > 4 and 'ema_state_dict' in last

    page = tmp_path / 'work' / 'report.html'
    assert 'Ctrl-C' not in page.read_text()
    page.unlink()
    stored = (tmp_path / 'work' / 'options.json').read_text()
    code, out, err = start(*common, '--cfg-options', 'optim_wrapper.optimizer.lrr=1')
    assert code != 0 and 'lrr' in err and (tmp_path / 'work' / 'options.json').read_text() == stored
    code, out, err = start(*common)  # a finished one: test, pictures and report once more
    assert code == 0 and 'measured on the test split' in out and page.is_file(), out + err


@pytest.mark.slow
def test_a_longer_resume_has_its_own_schedule(shapes, tmp_path, start):
    """The learning rate is that of the new length, and a training that is over says so."""
    work_dir = tmp_path / 'work'
    common = ['--work-dir', work_dir, '--pictures', '0']
    config = ['--data', shapes, '--config', 'deformable-detr-refine-twostage_lite0_shapes', '--batch-size', '2']
    code, out, err = start(*common, *config, '--iters', '4', *TINY)
    assert code == 0, out + err

    def rate(name):
        return torch.load(work_dir / name)['optimizer']['param_groups'][0]['lr']

    code, out, err = start(*common, '--resume')
    assert code == 0 and 'the training was finished before' in out, out + err
    code, out, err = start(*common, '--resume', '--iters', '400', at=6)
    assert code == 0 and 'finished before' not in out, out + err
    assert rate('interrupted.pth') > 10 * rate('iter_4.pth')  # in the warm-up, no more at the end


@pytest.mark.slow
def test_commands_of_the_report(shapes, tmp_path, monkeypatch, start):
    """Each runs as it is printed, in the folder that is named, with names that a shell takes apart."""
    folder = tmp_path / "it's $HOME & co"
    shutil.copytree(shapes, folder / '-data')
    monkeypatch.chdir(folder)
    options = ['--data=-data', '--work-dir', 'my work', '--config', 'deformable-detr-refine-twostage_lite0_shapes']
    options += ['--iters', 60, '--batch-size', 6, '--ema', '--pictures', 0]
    code, out, err = start(*options, '--cfg-options', *TINY[3:])
    assert code == 0, out + err
    page = Path('my work/report.html').read_text()
    assert f'<code>{html.escape(str(folder))}</code>' in page
    commands = [html.unescape(command) for command in re.findall('<pre>(.*?)</pre>', page, re.DOTALL)]
    assert [re.search(r'-m mmdet_ddetr (\w+)', command)[1] for command in commands] == [
        *('predict', 'explain', 'export', 'finetune', 'finetune')
    ]
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    for command in commands:
        run = subprocess.run(['bash', '-c', command], capture_output=True, text=True, env=env)
        assert run.returncode == 0, command + run.stdout + run.stderr
    assert Path('my work/detector.onnx').is_file() and Path('my work-2/report.html').is_file()
    assert 'my work-2' in Path('my work-2/report.html').read_text()


@pytest.mark.slow
def test_other_classes_later(shapes, tmp_path, start):
    """From a detector of other classes: those of the same name keep their rows, and what is frozen stays."""
    data = tmp_path / 'data'
    (data / 'annotations').mkdir(parents=True)
    (data / 'images').symlink_to(shapes / 'images')
    for split in ('train', 'val', 'test'):
        coco = json.loads((shapes / 'annotations' / f'{split}.json').read_text())
        for category in coco['categories']:
            names = {'circle': 'disc', 'square': 'ring', 'ring': 'square', 'star': 'Star'}
            category['name'] = names.get(category['name'], category['name'])
        (data / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
    common = ['--config', 'deformable-detr-refine-twostage_lite0_shapes', '--iters', '1', '--pictures', '0']
    code, out, err = start('--data', shapes, '--work-dir', tmp_path / 'first', *common, *TINY)
    assert code == 0, out + err
    (best,) = (tmp_path / 'first').glob('best_*.pth')
    again = ['--load-from', best, '--freeze', 'encoder', '--lr', '1e-9']
    code, out, err = start('--data', data, '--work-dir', tmp_path / 'second', *again, *common, *TINY)
    assert code == 0, out + err
    assert '4 of 5 have a row in the checkpoint (ring, triangle, Star, square); anew: disc' in out
    before, after = (
        torch.load(next((tmp_path / name).glob('iter_*.pth')))['state_dict'] for name in ('first', 'second')
    )
    rows = before['bbox_head.cls_branches.0.weight'], after['bbox_head.cls_branches.0.weight']
    torch.testing.assert_close(rows[1][1:], rows[0][[4, 2, 3, 1]])
    assert not torch.allclose(rows[1][0], rows[0][0])
    for name, tensor in before.items():
        if name.startswith(('backbone.', 'neck.', 'encoder.')):
            assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--data', '/nowhere'], 'finetune.py: /nowhere is missing, expected a folder'),
        (['--data', 'SHAPES', '--cfg-options', 'scale=512'], 'the size of the images is set by --image-size'),
        (['--data', 'SHAPES', '--config', 'no-such-config'], "finetune.py: no config 'no-such-config'"),
        (['--data', 'SHAPES', '--epochs', '0'], 'argument --epochs: 0 is not positive'),
        (['--resume'], 'options.json is missing, so no training began there; give --data'),
        ([], 'finetune.py: error: give --data, a folder of labelled images'),
        (['--data', 'SHAPES', '--minutes', '0.01'], '--minutes 0.01: no time is left to train'),
        (['--data', 'SHAPES', '--minutes', 'nan'], 'argument --minutes: nan is not positive'),
        (['--data', 'SHAPES', '--lr', 'inf'], 'argument --lr: inf is not positive'),
        (['--data', 'SHAPES', '--seed', '-1'], 'argument --seed: -1 is not a seed from 0 to 4294967295'),
        (['--data', 'SHAPES', '--val-fraction', '1.5'], 'argument --val-fraction: 1.5 is not a share between 0 and 1'),
        (['--data', 'SHAPES', '--pictures', '-1'], 'argument --pictures: -1 is not 0 or more'),
        (['--data', 'SHAPES', '--image-size', '10'], 'argument --image-size: 10 is not a side from 32 to 8192 px'),
        (['--data', 'SHAPES', '--image-size', '99999'], '--image-size: 99999 is not a side from 32 to 8192 px'),
        (
            ['--data', 'SHAPES', '--cfg-options', 'train_dataloader.batch_size=abc'],
            "--cfg-options train_dataloader.batch_size: got 'abc', expected a number, as 4 is",
        ),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_wrong_arguments(shapes, tmp_path, monkeypatch, capsys, args, message):
    tool = load_tool(monkeypatch)
    args = [str(shapes) if arg == 'SHAPES' else arg for arg in args]
    monkeypatch.setattr(sys, 'argv', ['finetune.py'])
    with pytest.raises(SystemExit) as error:
        tool.main([*args, '--work-dir', str(tmp_path)])
    told = str(error.value) + capsys.readouterr().err
    assert message in told and 'usage:' not in told


@pytest.mark.parametrize('text', ['{"data": ', '[1]', '{"nonsense": 1}'])
def test_damaged_options(tmp_path, monkeypatch, capsys, text):
    (tmp_path / 'options.json').write_text(text)
    tool = load_tool(monkeypatch)
    with pytest.raises(SystemExit, match='options.json: these are no options of this tool; remove the file'):
        tool.main(['--resume', '--work-dir', str(tmp_path)])


@pytest.mark.parametrize('name', ['iter_44.pth', 'best_coco_bbox_mAP_iter_44.pth'])
def test_a_training_is_not_overwritten(shapes, tmp_path, monkeypatch, name):
    (tmp_path / name).touch()
    tool = load_tool(monkeypatch)
    with pytest.raises(SystemExit, match=f'--work-dir {tmp_path} holds a training: --resume goes on with it, another'):
        tool.main(['--data', str(shapes), '--work-dir', str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(('code', 'iteration'), [(errno.ENOSPC, 5), (errno.ENOSPC, 0), (errno.EACCES, 5)])
def test_a_full_disk_ends_a_training_that_is_tested(monkeypatch, code, iteration):
    def train():
        raise OSError(code, os.strerror(code), 'iter_5.pth')

    tool, runner = load_tool(monkeypatch), SimpleNamespace(train=train, iter=iteration)
    if code == errno.ENOSPC and iteration:
        ended = tool.train(runner)
        assert ended == '; iter_5.pth: No space left on device: the training ended after iteration 5'
    else:  # nothing is there to test, or it is no matter of space
        with pytest.raises(OSError):
            tool.train(runner)


def test_an_image_that_breaks_while_training_is_named(tmp_path, shapes):
    """From a worker process, through mmengine's dataset, to the message of the tool."""
    shutil.copytree(shapes, tmp_path / 'data')
    cfg = finetune.configure(get_config(CONFIGS[0]), find_coco_folder(tmp_path / 'data'), CLASSES)
    path = tmp_path / 'data' / 'images' / 'train' / 'train_000003.jpg'
    path.write_bytes(path.read_bytes()[:-100])
    init_default_scope('mmdet')
    cfg.train_dataloader.update(num_workers=1)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    with pytest.raises(DataError) as error:
        list(loader)
    assert str(error.value).rpartition('DataError: ')[2].strip() == (
        f'{path} (image id 3): the JPEG ends in the middle of its pixels'
    )


def test_help_is_fast():
    run = subprocess.run(
        [sys.executable, '-X', 'importtime', REPO / 'tools' / 'finetune.py', '-h'], capture_output=True, text=True
    )
    assert run.returncode == 0 and '--data' in run.stdout
    assert not re.search(r'\| +(torch|mmengine|numpy|mmdet)$', run.stderr, re.MULTILINE)


def load_tool(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / 'tools'))
    spec = importlib.util.spec_from_file_location('finetune_tool', REPO / 'tools' / 'finetune.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
