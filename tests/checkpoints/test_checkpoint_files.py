"""Checkpoint files: what is read, what is refused, what is kept and written."""

import json
import pickle
import runpy
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.checkpoints import TARGETS, CheckpointError, check_fit, convert, load_checkpoint, stored_config
from mmdet_ddetr.checkpoints.files import read_class_names, write
from mmdet_ddetr.checkpoints.huggingface_folder import make_configs
from mmdet_ddetr.checkpoints.layouts import NAMES

COCO = CocoDataset.METAINFO['classes']
TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


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
    with pytest.raises(CheckpointError, match=r'weights\.pth is refused'):
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


@pytest.mark.parametrize('shape', [(), (0,), (3,), (1, 1, 1)])
@pytest.mark.parametrize(
    'name', ['class_embed.0.weight', 'transformer.encoder.layers.0.self_attn.sampling_offsets.bias']
)
def test_names_that_fit_with_shapes_that_do_not(official, build, tmp_path, name, shape):
    """Converted for what its names say, or refused; a model takes nothing of a wrong shape."""
    model = dict(torch.load(official)['model'])
    assert name in model
    torch.save({'model': model | {name: torch.zeros(shape)}}, tmp_path / 'a.pth')
    try:
        checkpoint = load_checkpoint(tmp_path / 'a.pth')
        check_fit(checkpoint['state_dict'], build('two-stage'))
    except CheckpointError as error:
        assert '\n' not in str(error)
    else:
        raise AssertionError('taken')


def test_truncated_file(official, tmp_path):
    path = tmp_path / 'half.pth'
    path.write_bytes(official.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r'half\.pth cannot be read as a checkpoint of PyTorch: '):
        load_checkpoint(path)


def test_safetensors(build, tmp_path):
    pytest.importorskip('safetensors')
    ours = build('base').state_dict()
    path = tmp_path / 'model.safetensors'
    write(dict(state_dict=convert(ours, target='huggingface'), meta={}), tmp_path, 'huggingface')
    for loaded in (
        load_checkpoint(path),
        load_checkpoint(tmp_path),
        CheckpointLoader.load_checkpoint(str(path), logger='silent'),
    ):
        assert all(torch.equal(loaded['state_dict'][key], value) for key, value in ours.items())
    path.write_text('not a checkpoint')
    with pytest.raises(CheckpointError, match='cannot be read as safetensors: '):
        load_checkpoint(path)


def test_safetensors_is_not_installed(build, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    path = tmp_path / 'model.safetensors'
    path.write_text('any')
    with pytest.raises(CheckpointError, match=r'model\.safetensors needs a package to read it: pip install safetens'):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match='needs a package to write it: pip install safetensors'):
        write(dict(state_dict={}), tmp_path, 'huggingface')


# --- folders of the hub and names of classes -------------------------------------------------------------------------


def save_folder(folder, state_dict, id2label):
    torch.save(convert(state_dict, target='huggingface'), folder / 'pytorch_model.bin')
    (folder / 'config.json').write_text(json.dumps(dict(id2label=id2label)))


def test_folder_with_own_classes(build, tmp_path):
    names = ['platelet', 'red cell', 'white cell']
    save_folder(tmp_path, build('refine', num_classes=3).state_dict(), dict(enumerate(names)))
    for source in (tmp_path, tmp_path / 'pytorch_model.bin'):
        checkpoint = load_checkpoint(source)
        assert checkpoint['meta']['dataset_meta'] == dict(classes=tuple(names))
        assert len(checkpoint['state_dict']['bbox_head.cls_branches.0.bias']) == 3


def test_folder_with_80_other_classes(build, tmp_path):
    """As many rows as COCO has classes do not make them COCO's."""
    names = [f'part {i}' for i in range(80)]
    save_folder(tmp_path, convert(build('refine').state_dict(), classes='keep'), dict(enumerate(names)))
    torch.save(
        convert(build('refine').state_dict(), 'mmdet_ddetr', 'huggingface', 'keep'), tmp_path / 'pytorch_model.bin'
    )
    assert load_checkpoint(tmp_path)['meta']['dataset_meta'] == dict(classes=tuple(names))


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
    expected = dict(classes=('a', 'b'), palette=[(1, 2, 3)] * 2)
    for meta in (
        dict(dataset_meta=expected, epoch=3),
        dict(CLASSES=('a', 'b'), PALETTE=[(1, 2, 3)] * 2, config='model = dict()'),  # MMDetection 2.x
    ):
        torch.save(dict(state_dict=state_dict, meta=meta), tmp_path / 'epoch_3.pth')
        assert load_checkpoint(tmp_path / 'epoch_3.pth')['meta'] == dict(dataset_meta=expected)


def test_classes_of_kept_rows(official):
    """All 91 rows: names at their category ids."""
    classes = load_checkpoint(official, classes='keep')['meta']['dataset_meta']['classes']
    assert len(classes) == 91
    assert (classes[0], classes[1], classes[12], classes[90]) == ('N/A', 'person', 'N/A', 'toothbrush')
    assert load_checkpoint(official, target='huggingface')['meta']['dataset_meta']['classes'] == COCO


# --- the config in a checkpoint --------------------------------------------------------------------------------------


def test_config_is_read_as_mmengine_reads_it():
    cfg = get_config('deformable-detr-refine-twostage_lite0_finetune')
    assert stored_config.parse(cfg.pretty_text) == Config.fromstring(cfg.pretty_text, '.py').to_dict()
    assert stored_config.parse("a = dict(b=-1, c=(1, 'x' 'y'), d={'e.f': [None, True]})") == dict(
        a=dict(b=-1, c=(1, 'xy'), d={'e.f': [None, True]})
    )


@pytest.mark.parametrize(
    'source',
    [
        'import os',
        "a = __import__('os').getcwd()",
        "a = dict(b=open('trace', 'w'))",
        'a = [x for x in ()]',
        'a = {**{}}',
        'a = dict(**{})',
        'a = 9 ** 9',
        'a.b = 1',
        'a =',
    ],
)
def test_config_with_a_program_is_refused(source):
    with pytest.raises(CheckpointError, match='the config in the checkpoint is refused'):
        stored_config.parse(source)


def test_inferencer_does_not_run_a_config(build, tmp_path):
    path, trace = tmp_path / 'epoch_1.pth', tmp_path / 'trace'
    cfg = f'model = dict(type=open({str(trace)!r}, "w").name)\n'
    torch.save(dict(state_dict=build('base').state_dict(), meta=dict(cfg=cfg)), path)
    with pytest.raises(CheckpointError, match='the config in the checkpoint is refused'):
        DDetrInferencer(weights=path, device='cpu')
    assert not trace.exists()


# --- the configs of a folder -----------------------------------------------------------------------------------------


def test_config_for_transformers_without_ours(build):
    """Without a config the papers' 8 heads; here 4 of 4 points, which are as many weights as 8 of 2."""
    config, _ = make_configs(build('two-stage').state_dict(), {})
    assert (config['encoder_attention_heads'], config['encoder_n_points'], config['decoder_n_points']) == (8, 2, 2)
    assert config['two_stage_num_proposals'] == 300
    assert config['id2label'] == {i: f'LABEL_{i}' for i in range(80)}
    assert config['backbone_config']['out_features'] == ['stage2', 'stage3', 'stage4']
    config, preprocessor = make_configs(build('DETR', num_classes=3).state_dict(), {})
    assert (config['num_queries'], len(config['id2label'])) == (12, 3)
    assert config['backbone_config']['out_features'] == ['stage4']
    assert preprocessor['image_processor_type'] == 'DetrImageProcessor'


def test_models_that_transformers_lacks(build):
    ours = build('base').state_dict()
    for backbone in (dict(type='mmdet_ddetr.ResNetDC5'), dict(type='ResNet', dilations=(1, 1, 1, 2))):
        with pytest.raises(CheckpointError, match='is not dilated: a DC5 model cannot be written for it'):
            make_configs(ours, dict(cfg=Config(dict(model=dict(backbone=backbone))).pretty_text))
    grouped = dict(ours) | {'backbone.layer1.0.conv2.weight': torch.zeros(8, 2, 3, 3)}
    with pytest.raises(CheckpointError, match='has no groups: a ResNeXt cannot be written for it'):
        make_configs(grouped, {})
    with pytest.raises(CheckpointError, match='have 80 rows, which does not fit 3 classes'):
        make_configs(ours, dict(dataset_meta=dict(classes='abc')))


# --- the users' ways in ----------------------------------------------------------------------------------------------


def test_inferencer_takes_official_weights(official, build):
    cfg = get_config('deformable-detr-refine-twostage_r50_16xb2-50e_coco')
    cfg.model = build.config('two-stage')
    inferencer = DDetrInferencer(cfg, official, device='cpu', show_progress=False)
    assert inferencer.model.dataset_meta['classes'] == COCO
    expected = build('two-stage').state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in inferencer.model.state_dict().items())
    with pytest.raises(
        ValueError, match=r'holds no config, so give one that fits: Deformable DETR, ResNet-50, .*two-st'
    ):
        DDetrInferencer(weights=official, device='cpu')
    cfg.model.bbox_head.num_classes = 3
    with pytest.raises(
        ValueError,
        match=r'weights: .*checkpoint0049\.pth: 6 tensors do not fit the model; .* is \[80, 64\] in the',
    ):
        DDetrInferencer(cfg, official, device='cpu')
    cfg.model.bbox_head.num_classes = 80
    cfg.model.neck.bias = 'auto'  # mmdet's default: none before a norm
    with pytest.raises(
        ValueError,
        match=r'weights: .*checkpoint0049\.pth: neck\.convs\.0\.conv\.bias and 3 more .* set model\.neck\.bias=True',
    ):
        DDetrInferencer(cfg, official, device='cpu')


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Run the tool within this process, in an empty folder: ``tool(*args)`` -> (return code, all it printed)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, args)])
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as stop:
            return 1, str(stop.code)
        return 0, capsys.readouterr().out

    return run


def test_tool(official, tool, build):
    code, text = tool(official, 'converted.pth')
    assert code == 0, text
    assert 'Deformable DETR, ResNet-50, 4 levels, 2 + 2 layers, box refinement, two-stage, 80 class rows' in text
    assert 'dropped 24 (second name of a head)' in text
    assert 'resized 2 ([91, 64] -> [80, 64], rows of the 80 COCO classes): bbox_head.cls_branches.*.weight' in text
    assert 'classes: person, bicycle, ' in text
    converted = torch.load('converted.pth')
    assert converted['meta']['dataset_meta']['classes'] == COCO
    assert all(torch.equal(converted['state_dict'][k], v) for k, v in build('two-stage').state_dict().items())

    code, text = tool('converted.pth', 'back.pth', '--to', 'official', '--verbose')
    assert code == 0, text
    assert 'added transformer.decoder.class_embed.2.bias (second name of a head)' in text
    back, original = (torch.load(path)['model'] for path in ('back.pth', official))
    assert all(torch.equal(back[key], value) for key, value in original.items())


def test_tool_writes_a_folder_of_the_hub(official, tool):
    pytest.importorskip('safetensors')
    code, text = tool(official, 'hub', '--to', 'huggingface')
    assert code == 0, text
    config = json.loads(Path('hub/config.json').read_text())
    assert config['model_type'] == 'deformable_detr' and config['two_stage'] and config['with_box_refine']
    assert (config['d_model'], config['encoder_layers'], config['decoder_ffn_dim']) == (64, 2, 128)
    assert (config['id2label']['0'], config['id2label']['1'], config['label2id']['toothbrush']) == ('N/A', 'person', 90)
    assert config['backbone_config']['hidden_sizes'] == [32, 64, 128, 256]
    assert json.loads(Path('hub/preprocessor_config.json').read_text())['do_normalize'] is True
    assert load_checkpoint('hub')['meta']['dataset_meta']['classes'] == COCO


def test_errors_of_the_tool(official, tool, tmp_path):
    for args, error in (
        ([official, tmp_path], 'is a folder, expected a file to write'),
        ([official, official, '--to', 'huggingface'], 'is a file, expected a folder to write'),
        ([tmp_path / 'none.pth', 'x.pth'], 'no checkpoint '),
        ([official, 'x.pth', '--from', 'detrex'], 'no known layout: the nearest, detrex DeformableDETR, has'),
    ):
        code, text = tool(*args)
        assert code == 1
        assert text.startswith('convert_checkpoint.py: ') and error in text


def test_help_of_the_tool(run_tool):
    """It names the layouts itself, so that its help imports nothing."""
    code, text = run_tool('convert_checkpoint.py', '-h')
    assert code == 0
    assert f'--to {{{",".join(TARGETS)}}}' in text
    for name in NAMES:
        assert name in text.partition('--from')[2]
