"""Data sets name the picture that does not load, and bound what one may cost."""

import json
import os
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile
from mmdet.datasets.api_wrappers import COCO
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.hub import get_config as mmdet_config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from PIL import Image

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import finetune
from mmdet_ddetr.datasets import (
    CocoDataset,
    DataError,
    LoadImageFromFile,
    LVISV05Dataset,
    LVISV1Dataset,
    VOCDataset,
    XMLDataset,
    find_coco_folder,
    read_coco,
    read_image,
)
from mmdet_ddetr.evaluation import CocoMetric
from mmdet_ddetr.hooks import SamplePicturesHook

SCOPES = ('', 'mmcv.', 'mmdet.', 'mmdet_ddetr.')
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


@pytest.mark.parametrize('loader', [*(f'{scope}LoadImageFromFile' for scope in SCOPES), MMCVLoadImageFromFile])
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


@pytest.fixture
def draw(tmp_path):
    """Draw pictures of a validation set by the hook; the names of those drawn, and the warnings."""

    def draw(paths, rounds=1, **dataset):
        infos = [dict(img_path=path, instances=[]) for path in paths]
        members = dict(metainfo=dict(classes=('cat',)), get_data_info=infos.__getitem__, **dataset)
        dataset = type('Data', (list,), members)(infos)
        written, said = [], []
        visualizer = SimpleNamespace(add_image=lambda name, picture, step: written.append(name))
        loader = type('Loader', (list,), dict(dataset=dataset))(infos)
        logger = SimpleNamespace(warning=said.append)
        runner = SimpleNamespace(val_dataloader=loader, visualizer=visualizer, iter=1, logger=logger)
        hook = SamplePicturesHook(n_images=len(paths))
        found = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0), scores=torch.zeros(0))
        for _ in range(rounds):
            hook.before_val_epoch(runner)
            for i, path in enumerate(paths):
                sample = SimpleNamespace(img_id=i, img_path=path, pred_instances=found)
                hook.after_val_iter(runner, i, outputs=[sample])
        return written, said

    return draw


@register_backend('tests.memory', force=True, prefixes='memory')
class Memory(BaseStorageBackend):
    """A remote backend: what it has is on no disk."""

    content = {}

    def __init__(self, bucket='a'):
        self.bucket = bucket

    def get(self, filepath):
        return self.content[self.bucket, filepath]

    def get_text(self, filepath, encoding='utf-8'):
        return self.get(filepath).decode(encoding)


def test_pictures_of_a_remote_backend(draw):
    """By the backend of the data set's loader, or by the address alone; what does not load ends nothing."""
    png = cv2.imencode('.png', np.full((30, 40, 3), 7, np.uint8))[1].tobytes()
    Memory.content = {('b', '1.png'): png, ('a', 'memory://2.png'): png}
    pipeline = SimpleNamespace(transforms=[LoadImageFromFile(backend_args=dict(backend='tests.memory', bucket='b'))])
    written, said = draw(['1.png', '3.png'], pipeline=pipeline)
    assert written == ['sample_1'] and len(said) == 1 and "3.png: not readable by Memory: KeyError: ('b'" in said[0]
    assert read_image('memory://2.png').tolist() == np.full((30, 40, 3), 7).tolist()
    with pytest.raises(DataError, match='none://2.png: not readable: this kind of address is not known'):
        read_image('none://2.png')
    assert draw([None])[0] == []


def test_sample_pictures_of_one_name(tmp_path, draw):
    """From two cameras: each has its file, the same one after every evaluation."""
    paths = [tmp_path / f'cam{i}' / '0001.jpg' for i in range(3)]
    for path in paths:
        path.parent.mkdir()
        cv2.imwrite(str(path), np.zeros((30, 40, 3), np.uint8))
    written, _ = draw([str(path) for path in paths], rounds=2)
    assert written == ['sample_0001', 'sample_cam1_0001', 'sample_cam2_0001'] * 2


# ------------------------------------------------------------------------------------------------- VOC, LVIS and limits


def write_voc(folder, xml='<annotation/>'):
    (folder / 'Annotations').mkdir()
    (folder / 'JPEGImages').mkdir()
    (folder / 'list.txt').write_text('7\n')
    (folder / 'Annotations/7.xml').write_text(xml)
    (folder / 'JPEGImages/7.jpg').write_bytes(b'')
    return dict(ann_file=str(folder / 'list.txt'), data_prefix=dict(sub_data_root=str(folder)))


@pytest.mark.parametrize('kind', [VOCDataset, XMLDataset])
def test_voc_names_the_file(tmp_path, kind):
    box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>'
    size = '<size><width>20</width><height>20</height></size>'
    kwargs = write_voc(tmp_path, f'<annotation>{size}<object><name>cat</name>{box}</object></annotation>')
    kwargs.update(metainfo=dict(classes=('cat',)), test_mode=True)
    dataset = kind(**kwargs, pipeline=[dict(type='LoadImageFromFile'), PACK])
    assert dataset.get_data_info(0)['instances'][0]['bbox'] == [0, 0, 8, 8]
    with pytest.raises(DataError, match=r'7\.jpg \(image id 7\): the file is empty'):
        dataset[0]
    for xml, reason in (('', 'ParseError'), ('<a', 'ParseError'), (f'<a>{size}<object/></a>', 'AttributeError')):
        (tmp_path / 'Annotations/7.xml').write_text(xml)
        with pytest.raises(DataError, match=rf'7\.xml cannot be read as an annotation of Pascal VOC: {reason}'):
            kind(**kwargs)
    (tmp_path / 'Annotations/7.xml').unlink()
    os.mkfifo(tmp_path / 'Annotations/7.xml')
    with pytest.raises(DataError, match=r'7\.xml: a pipe or device, expected a file'):
        kind(**kwargs)


@pytest.mark.parametrize('kind', [LVISV05Dataset, LVISV1Dataset])
def test_lvis_names_the_file(write, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, 'lvis', SimpleNamespace(LVIS=COCO))  # reads the same format
    kwargs = write(content=b'', size=(40, 30))
    coco = json.loads((tmp_path / 'a.json').read_text())
    for image in coco['images']:
        image['coco_url'] = f'http://images.cocodataset.org/{image["file_name"]}'
    (tmp_path / 'a.json').write_text(json.dumps(coco))
    dataset = kind(**kwargs, pipeline=[dict(type='LoadImageFromFile'), PACK], test_mode=True)
    with pytest.raises(DataError, match=r'b\.png \(image id 2\): the file is empty'):
        dataset[1]


def test_a_folder_that_is_none(write):
    kwargs = write(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DataError, match="data_prefix: 'img' is None, expected a folder, .*_delete_=True"):
        CocoDataset(**{**kwargs, 'data_prefix': dict(img=None)})


def test_an_annotation_file_has_a_limit(write, tmp_path, monkeypatch):
    kwargs, path = write(np.zeros((20, 20, 3), np.uint8)), tmp_path / 'a.json'
    readers = (lambda: CocoDataset(**kwargs), lambda: CocoMetric(str(path)), lambda: read_coco(path))
    for reader in readers:
        reader()
    monkeypatch.setenv('MMDET_DDETR_MAX_ANNOTATIONS', str(100 / 2**30))
    for reader in readers:
        with pytest.raises(
            DataError, match=r'a\.json: 0\.0 GiB, expected at most .* set MMDET_DDETR_MAX_ANNOTATIONS to'
        ):
            reader()
    monkeypatch.setenv('MMDET_DDETR_MAX_ANNOTATIONS', 'much')
    with pytest.raises(DataError, match="MMDET_DDETR_MAX_ANNOTATIONS is 'much' in the environment, expected a number"):
        read_coco(path)
    monkeypatch.delenv('MMDET_DDETR_MAX_ANNOTATIONS')
    with open(path, 'ab') as file:
        file.truncate(2**31 + 1)  # no byte of it is read
    for reader in readers:
        with pytest.raises(DataError, match='2.0 GiB, expected at most 2 GiB'):
            reader()
    path.unlink()
    os.mkfifo(path)
    for reader in readers:
        with pytest.raises(DataError, match=r'a\.json: a pipe or device'):
            reader()
