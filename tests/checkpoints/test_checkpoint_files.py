"""Checkpoint files: what is read, what is refused, what is kept and written."""

import json
import pickle
import sys
from argparse import Namespace

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.runner import CheckpointLoader

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.checkpoints import TARGETS, CheckpointError, convert, load_checkpoint
from mmdet_ddetr.checkpoints.files import read_class_names, write
from mmdet_ddetr.checkpoints.layouts import NAMES

COCO = CocoDataset.METAINFO['classes']


@pytest.fixture(scope='module')
def official(build, tmp_path_factory):
    """A checkpoint as main.py of the official code writes it."""
    path = tmp_path_factory.mktemp('official') / 'checkpoint0049.pth'
    model = convert(build('two-stage').state_dict(), target='official')
    optimizer = {'state': {0: {'step': 3, 'exp_avg': torch.zeros(2)}}, 'param_groups': [{'lr': 2e-4, 'params': [0]}]}
    args = Namespace(lr=2e-4, lr_backbone_names=['backbone.0'], two_stage=True, device='cuda', masks=False)
    torch.save(dict(model=model, optimizer=optimizer, lr_scheduler={'last_epoch': 50}, epoch=49, args=args), path)
    return path


def test_official_file(official, build):
    checkpoint = load_checkpoint(official)
    build('two-stage', seed=1).load_state_dict(checkpoint['state_dict'], strict=True)
    assert checkpoint['meta']['dataset_meta']['classes'] == COCO
    assert CheckpointLoader.load_checkpoint(str(official), logger='silent')['epoch'] == 49  # and mmengine reads it, too


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_malicious_file_is_refused_and_not_run(build, tmp_path):
    path, trace = tmp_path / 'weights.pth', tmp_path / 'trace'
    torch.save(dict(model=convert(build('base').state_dict(), target='official'), args=Malicious(trace)), path)
    with pytest.raises(CheckpointError, match=r'weights\.pth is refused: it asks for (io|_io)\.open, .* any program'):
        load_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(str(path), logger='silent')
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace))).close()
    assert trace.exists()  # it would have


def test_no_checkpoint(tmp_path):
    (tmp_path / 'notes.pth').write_text('not a checkpoint')
    (tmp_path / 'notes.safetensors').write_text('not a checkpoint')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match=r'notes\.pth cannot be read as a checkpoint of PyTorch: '):
        load_checkpoint(tmp_path / 'notes.pth')
    with pytest.raises(CheckpointError, match=r"no checkpoint '.*nothing\.pth'"):
        load_checkpoint(tmp_path / 'nothing.pth')
    with pytest.raises(CheckpointError, match='list.pth holds a list, expected a checkpoint'):
        load_checkpoint(tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match=r'has neither model\.safetensors nor pytorch_model\.bin'):
        load_checkpoint(tmp_path)


def test_truncated_file(official, tmp_path):
    path = tmp_path / 'half.pth'
    path.write_bytes(official.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r'half\.pth cannot be read as a checkpoint of PyTorch: '):
        load_checkpoint(path)


def test_safetensors(build, tmp_path):
    pytest.importorskip('safetensors')
    ours = build('base').state_dict()
    path = tmp_path / 'model.safetensors'
    write(dict(state_dict=convert(ours, target='huggingface')), path, 'huggingface')
    for loaded in (load_checkpoint(path), CheckpointLoader.load_checkpoint(str(path), logger='silent')):
        assert all(torch.equal(loaded['state_dict'][key], value) for key, value in ours.items())
    path.write_text('not a checkpoint')
    with pytest.raises(CheckpointError, match='cannot be read as safetensors: '):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match='only huggingface reads .safetensors, official reads .pth'):
        write(dict(state_dict=ours), path, 'official')


def test_safetensors_is_not_installed(build, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    path = tmp_path / 'model.safetensors'
    path.touch()
    with pytest.raises(CheckpointError, match=r'model\.safetensors needs a package to read it: pip install safetens'):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r'model\.safetensors needs a package to write it: pip install safete'):
        write(dict(state_dict={}), path, 'huggingface')


# --- folders of the hub and names of classes -------------------------------------------------------------------------


def save_folder(folder, state_dict, id2label):
    write(dict(state_dict=convert(state_dict, target='huggingface')), folder / 'pytorch_model.bin', 'huggingface')
    (folder / 'config.json').write_text(json.dumps(dict(id2label=id2label)))


def test_folder_with_own_classes(build, tmp_path):
    names = ['platelet', 'red cell', 'white cell']
    save_folder(tmp_path, build('refine', num_classes=3).state_dict(), dict(enumerate(names)))
    for source in (tmp_path, tmp_path / 'pytorch_model.bin'):
        checkpoint = load_checkpoint(source)
        assert checkpoint['meta']['dataset_meta'] == dict(classes=tuple(names))
        assert len(checkpoint['state_dict']['bbox_head.cls_branches.0.bias']) == 3


def test_folder_with_91_other_classes(build, tmp_path):
    """91 classes that are not COCO's are not taken for them."""
    names = {i: f'part {i}' for i in range(91)}
    save_folder(tmp_path, build('refine', num_classes=91).state_dict(), names)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint['meta']['dataset_meta']['classes'][90] == 'part 90'
    assert len(checkpoint['state_dict']['bbox_head.cls_branches.0.bias']) == 91
    with pytest.raises(CheckpointError, match="classes: 'coco', but the classes are part 0, part 1"):
        load_checkpoint(tmp_path, classes='coco')


def test_class_names_in_configs(tmp_path):
    config = tmp_path / 'config.json'
    for labels, names in (
        ({'1': 'b', '0': 'a'}, ['a', 'b']),
        ({'0': 'LABEL_0', '1': 'LABEL_1'}, None),
        ({'0': 'a', '2': 'c'}, None),
        ({}, None),
    ):
        config.write_text(json.dumps(dict(id2label=labels)))
        assert read_class_names(config) == names


def test_dataset_meta_is_kept(build, tmp_path):
    state_dict = build('base', num_classes=2).state_dict()
    for meta, expected in (
        (dict(dataset_meta=dict(classes=('a', 'b'), palette=[(1, 2, 3)] * 2), epoch=3), None),
        (dict(CLASSES=('a', 'b'), PALETTE=[(1, 2, 3)] * 2, config='model = dict()'), None),
    ):
        torch.save(dict(state_dict=state_dict, meta=meta), tmp_path / 'epoch_3.pth')
        checkpoint = load_checkpoint(tmp_path / 'epoch_3.pth')
        assert checkpoint['meta'] == dict(dataset_meta=dict(classes=('a', 'b'), palette=[(1, 2, 3)] * 2)), expected


# --- the users' ways in ----------------------------------------------------------------------------------------------


def test_inferencer_takes_official_weights(official, build):
    cfg = get_config('deformable-detr-refine-twostage_r50_16xb2-50e_coco')
    cfg.model = build.config('two-stage')
    inferencer = DDetrInferencer(cfg, official, device='cpu', show_progress=False)
    assert inferencer.model.dataset_meta['classes'] == COCO
    expected = build('two-stage').state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in inferencer.model.state_dict().items())
    cfg.model.bbox_head.num_classes = 3
    with pytest.raises(
        ValueError, match=r'weights: 6 tensors do not fit the model; .* is \[80, 64\] in the checkpoint'
    ):
        DDetrInferencer(cfg, official, device='cpu')
    cfg.model.bbox_head.num_classes = 80
    cfg.model.neck.bias = 'auto'  # mmdet's default: none before a norm
    with pytest.raises(
        ValueError, match=r'weights: neck\.convs\.0\.conv\.bias and 3 more .* set model\.neck\.bias=True'
    ):
        DDetrInferencer(cfg, official, device='cpu')


def test_tool(official, run_tool, workspace, build):
    code, text = run_tool('convert_checkpoint.py', official, 'converted.pth')
    assert code == 0, text
    assert 'Deformable DETR, ResNet-50, 4 levels, 2 + 2 layers, box refinement, two-stage, 80 class rows' in text
    assert 'resized 6' in text and 'dropped 18 (second name of a head)' in text
    assert 'classes: person, bicycle, ' in text
    converted = torch.load(workspace / 'converted.pth')
    assert converted['meta']['dataset_meta']['classes'] == COCO
    assert all(torch.equal(converted['state_dict'][k], v) for k, v in build('two-stage').state_dict().items())

    code, text = run_tool('convert_checkpoint.py', 'converted.pth', 'back.pth', '--to', 'official', '--verbose')
    assert code == 0, text
    assert 'added transformer.decoder.class_embed.2.bias (second name of a head)' in text
    back, original = (torch.load(path)['model'] for path in (workspace / 'back.pth', official))
    assert all(torch.equal(back[key], value) for key, value in original.items())


def test_errors_of_the_tool(official, run_tool, tmp_path):
    for args, error in (
        ([official, tmp_path], 'is a folder, expected a file to write'),
        ([tmp_path / 'none.pth', 'x.pth'], 'no checkpoint '),
        ([official, 'x.pth', '--from', 'detrex'], 'no known layout: the nearest, detrex DeformableDETR, has'),
    ):
        code, text = run_tool('convert_checkpoint.py', *args)
        assert code == 1
        assert text.splitlines()[-1].startswith('convert_checkpoint.py: ') and error in text.splitlines()[-1]


def test_choices_of_the_tool(run_tool):
    """It names the layouts itself, so that its help imports nothing."""
    _, text = run_tool('convert_checkpoint.py', '-h')
    assert f'--to {{{",".join(TARGETS)}}}' in text
    for name in NAMES:
        assert name in text.partition('--from')[2]
