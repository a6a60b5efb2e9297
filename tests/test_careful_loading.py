"""Data sets name the picture that does not load, and bound what one may cost."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.hub import get_config as mmdet_config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from PIL import Image

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import finetune
from mmdet_ddetr.datasets import CocoDataset, DataError, LoadImageFromFile, find_coco_folder
from mmdet_ddetr.hooks import SamplePicturesHook

TO_64 = dict(type='Resize', scale=(64, 48), keep_ratio=True)
PACK = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape'))
CONFIG = 'deformable-detr-refine-twostage-dn_lite0_finetune'


@pytest.fixture
def write(tmp_path):
    """A data set of two images of one box; the second is given as pixels or bytes under a name."""
    init_default_scope('mmdet')

    def write(pixels=None, name='b.png', content=None, size=None):
        cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((30, 40, 3), np.uint8))
        if content is None and pixels is not None:
            Image.fromarray(pixels).save(tmp_path / name)
        elif content is not None:
            (tmp_path / name).write_bytes(content)
        width, height = size or pixels.shape[1::-1]
        images = [dict(id=1, file_name='a.png', width=40, height=30)]
        images.append(dict(id=2, file_name=name, width=width, height=height))
        box = dict(bbox=[0, 0, min(width, 12), min(height, 12)], area=9, iscrowd=0, category_id=1)
        annotations = [dict(box, id=i, image_id=i) for i in (1, 2)]
        coco = dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat')])
        (tmp_path / 'a.json').write_text(json.dumps(coco))
        return dict(
            ann_file=str(tmp_path / 'a.json'), data_prefix=dict(img=str(tmp_path)), metainfo=dict(classes=('cat',))
        )

    return write


@pytest.mark.parametrize('loader', ['LoadImageFromFile', 'mmdet_ddetr.LoadImageFromFile'])
def test_a_picture_that_only_pillow_reads(write, loader):
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    pipeline = [dict(type=loader, to_float32=True), PACK]
    dataset = CocoDataset(**write(picture, 'b.tga'), pipeline=pipeline, test_mode=True)
    assert type(dataset.pipeline.transforms[0]) is LoadImageFromFile and pipeline[0]['type'] == loader
    np.testing.assert_array_equal(dataset[1]['inputs'].numpy()[::-1], picture.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(content=b'', size=(40, 30)), r'b.png \(image id 2\): the file is empty'),
        (dict(content=b'<html>', size=(40, 30)), r'b.png \(image id 2\): not an image'),
        (
            dict(pixels=np.zeros((1, 3000, 3), np.uint8)),
            r'b.png \(image id 2\): 3000x1, expected at most 100 times as long as wide',
        ),
    ],
    ids=['emptied', 'no image', 'thin'],
)
def test_an_evaluation_names_the_picture(write, kwargs, message):
    dataset = CocoDataset(**write(**kwargs), pipeline=[dict(type='LoadImageFromFile'), TO_64, PACK], test_mode=True)
    with pytest.raises(DataError, match=f'(?s){message}'):
        dataset[1]


def test_too_many_pixels_for_the_model(write):
    """Told when the data set is built, where no transform makes the picture smaller, else when it is loaded."""
    kwargs = write(np.zeros((100, 200, 3), np.uint8))
    plain, to_64 = [dict(type='LoadImageFromFile'), PACK], [dict(type='LoadImageFromFile'), TO_64, PACK]
    message = r'b.png \(image id 2\): reaches the model with 200x100 = 20,000 pixels, expected at most 19,999: put'
    with pytest.raises(DataError, match=message):
        CocoDataset(**kwargs, pipeline=plain, max_pixels=19999)
    assert CocoDataset(**kwargs, pipeline=plain, max_pixels=20000)[1]['inputs'].shape == (3, 100, 200)
    assert CocoDataset(**kwargs, pipeline=plain, max_pixels=None)[1]['inputs'].shape == (3, 100, 200)
    assert CocoDataset(**kwargs, pipeline=to_64, max_pixels=64 * 48)[1]['inputs'].shape == (3, 32, 64)
    enlarged = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(300, 300)), PACK]
    with pytest.raises(DataError, match='300x300 = 90,000 pixels'):
        CocoDataset(**kwargs, pipeline=enlarged, max_pixels=20000)[1]


def test_20000_x_3000_px_are_refused_by_default(write):
    """They took 21 GB of memory."""
    kwargs = write(content=b'never read', size=(20000, 3000))
    with pytest.raises(DataError, match='20000x3000 = 60,000,000 pixels, expected at most 8,388,608'):
        CocoDataset(**kwargs, pipeline=[dict(type='LoadImageFromFile'), PACK])
    CocoDataset(**kwargs, pipeline=[dict(type='LoadImageFromFile'), TO_64, PACK])


def test_a_filter_that_leaves_nothing(write):
    kwargs = write(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"a.json: filter_cfg={'min_size': 64} leaves none of its 2 images"):
        CocoDataset(**kwargs, pipeline=[], filter_cfg=dict(min_size=64))
    assert len(CocoDataset(**kwargs, pipeline=[], filter_cfg=dict(min_size=20))) == 2


@pytest.mark.parametrize('config', [CONFIG, 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'])
def test_finetune_trains_on_small_pictures(write, tmp_path, config):
    """mmdet leaves out what is below 32 px, and of a data set of such pictures nothing stays."""
    write(np.zeros((20, 20, 3), np.uint8))
    for split in ('train', 'val'):
        (tmp_path / f'{split}.json').write_bytes((tmp_path / 'a.json').read_bytes())
    cfg = mmdet_config(config) if '::' in config else get_config(config)
    cfg = finetune.configure(cfg, find_coco_folder(tmp_path), ('cat',))
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    dataset = Runner.build_dataloader(cfg.train_dataloader, seed=0).dataset
    assert isinstance(dataset, CocoDataset) and len(dataset) == 2


def test_sample_pictures_of_one_name(tmp_path):
    """From two cameras: each has its file, the same one after every evaluation."""
    paths = [tmp_path / f'cam{i}' / '0001.jpg' for i in range(3)]
    for path in paths:
        path.parent.mkdir()
        cv2.imwrite(str(path), np.zeros((30, 40, 3), np.uint8))
    infos = [dict(img_path=str(path), instances=[]) for path in paths]
    members = dict(metainfo=dict(classes=('cat',)), get_data_info=infos.__getitem__)
    dataset = type('Data', (list,), members)(infos)
    written = []
    visualizer = SimpleNamespace(add_image=lambda name, picture, step: written.append(name))
    loader = type('Loader', (list,), dict(dataset=dataset))(infos)
    runner = SimpleNamespace(val_dataloader=loader, visualizer=visualizer, iter=1)
    hook = SamplePicturesHook(n_images=3)
    found = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0), scores=torch.zeros(0))
    for _ in range(2):
        hook.before_val_epoch(runner)
        for i, path in enumerate(paths):
            sample = SimpleNamespace(img_id=i, img_path=str(path), pred_instances=found)
            hook.after_val_iter(runner, i, outputs=[sample])
    assert written == ['sample_0001', 'sample_cam1_0001', 'sample_cam2_0001'] * 2
