"""Files of strangers: every place that reads one runs nothing of it, and names it when it refuses it."""

import ast
import copy
import functools
import http.server
import inspect
import io
import json
import os
import pickle
import pickletools
import re
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as theirs

import mmdet_ddetr
from mmdet_ddetr import get_config
from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.apis.stored_model import (
    MODELS,
    MORE_THAN_COMPUTE,
    TASK_UTILS,
    TRANSFORMS,
    _import_registered,
    _tree,
    stored_model,
)
from mmdet_ddetr.checkpoints import CheckpointError, load, load_checkpoint, stored_config
from mmdet_ddetr.checkpoints.files import read_class_names

PACKAGE = Path(mmdet_ddetr.__file__).parent
NAME = 'deformable-detr_lite0_shapes'


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# --- every place ------------------------------------------------------------------------------------------------------

READERS = {  # file of the package: the calls in it that could run what somebody else has written
    '__main__.py': {'exec'},  # the script that the user names
    'apis/configs.py': {'Config.fromfile'},  # a program: the user's own, never one of a checkpoint
    'checkpoints/read.py': {'torch.load', 'load_file'},
    'checkpoints/sources.py': {'mmengine.load'},  # the addresses that mmengine ships
    'checkpoints/stored_config.py': {'ast.literal_eval', 'ast.parse'},
    'datasets/formats/yolo.py': {'yaml.safe_load'},  # makes plain values only
    'hooks/classes.py': {'ElementTree.fromstring'},  # annotations of VOC, which mmdet reads in the same way
}
READS = re.compile(
    r'eval|exec|load_file|(torch|np|pickle|mmengine|yaml)\.(loads?|safe_load)|.*\.(fromfile|fromstring|literal_eval)|'
    r'ast\.parse|.*Unpickler'
)


def test_no_other_place_reads_files():
    """Whoever adds one thinks of strangers, here and in docs/checkpoints.md."""
    found = {}
    for path in PACKAGE.rglob('*.py'):
        calls = (node for node in ast.walk(ast.parse(path.read_text('utf-8'))) if isinstance(node, ast.Call))
        if names := {name for call in calls if READS.fullmatch(name := ast.unparse(call.func))}:
            found[path.relative_to(PACKAGE).as_posix()] = names
    assert found == READERS


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize('options', [{}, dict(pickle_protocol=4), dict(_use_new_zipfile_serialization=False)])
def test_no_source_runs_a_pickle(served, tmp_path, monkeypatch, options):
    """By path, address, folder and every name that stands for an address; by mmengine's loader and ours."""
    folder, address = served
    trace, path = tmp_path / 'trace', folder / 'weights.pth'
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'meta': Call(os.system, f'touch {trace}')}, path, **options)
    (tmp_path / 'hub').mkdir()
    (tmp_path / 'hub/pytorch_model.bin').write_bytes(path.read_bytes())
    (tmp_path / 'plain.pkl').write_bytes(pickle.dumps(Call(os.system, f'touch {trace}')))
    url = f'{address}/weights.pth'
    monkeypatch.setattr(theirs, 'get_external_models', lambda: dict(evil=url, local=str(path)))
    monkeypatch.setattr(theirs, 'get_mmcls_models', lambda: dict(evil=url))
    monkeypatch.setattr(theirs, 'get_torchvision_models', lambda: dict(evil=url))
    sources = [path, tmp_path / 'hub', tmp_path / 'plain.pkl', url]
    sources += ['torchvision://evil', 'openmmlab://evil', 'open-mmlab://local', 'mmcls://evil']
    for source in sources:
        for read in (load, load_checkpoint, functools.partial(CheckpointLoader.load_checkpoint, logger='silent')):
            with pytest.raises(CheckpointError, match='is refused: it asks for posix.system'):
                read(str(source))
    with pytest.raises(CheckpointError, match=f'{url}.*posix.system'):
        DDetrInferencer(weights=url, device='cpu')
    assert not trace.exists()


def test_every_scheme_is_ours():
    """None of mmengine's loaders is left, of those that it may add as well."""
    for prefix, loader in CheckpointLoader._schemes.items():
        assert getattr(loader, '__wrapped__', None) or loader.__module__.startswith('mmdet_ddetr'), prefix


def test_files_of_addresses_are_kept_apart(served):
    """Two addresses may end in one name; a name with its content's hash is shared, a wrong hash is not."""
    folder, address = served
    for i in (1, 2):
        (folder / str(i)).mkdir()
        torch.save({'a': torch.full((1,), i)}, folder / str(i) / 'epoch_1.pth')
        (folder / str(i) / 'r50-0123456789.pth').write_bytes((folder / str(i) / 'epoch_1.pth').read_bytes())
    for name in ('epoch_1.pth', 'r50-0123456789.pth'):
        assert [int(load(f'{address}/{i}/{name}')['a']) for i in (1, 2)] == [1, 2]
    (folder / '1/epoch_1.pth').unlink()
    assert load(f'{address}/1/epoch_1.pth')['a'] == 1  # from the cache


def test_a_page_instead_of_a_checkpoint_is_not_kept(served):
    folder, address = served
    (folder / 'a.pth').write_text('<!DOCTYPE html><html>Not found</html>')
    with pytest.raises(CheckpointError, match=f'{address}/a.pth: .*it is a web page: download the file itself'):
        load(f'{address}/a.pth')
    torch.save({'a': torch.ones(1)}, folder / 'a.pth')
    assert load(f'{address}/a.pth')['a'] == 1
    with pytest.raises(CheckpointError, match=f'{address}/b.pth cannot be downloaded: .*404'):
        load(f'{address}/b.pth')


def test_torchvisions_weights_without_torchvision(tmp_path, monkeypatch):
    """mmengine ships their addresses; where it does not know a name, the remedy is said."""
    asked = []

    def download(url, path, progress):
        asked.append(url)
        torch.save({'a': torch.ones(1)}, path)

    monkeypatch.setitem(sys.modules, 'torchvision', None)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    assert CheckpointLoader.load_checkpoint('torchvision://resnet50')['a'] == 1
    assert asked == ['https://download.pytorch.org/models/resnet50-0676ba61.pth']
    with pytest.raises(CheckpointError, match='torchvision://resnet5 needs torchvision .*pip install torchvision'):
        CheckpointLoader.load_checkpoint('torchvision://resnet5')


# --- what is not a checkpoint -----------------------------------------------------------------------------------------


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(*names):
    """Of an archive of files in one folder."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name in names:
            archive.writestr(f'archive/{name}', b'pt2')
    return file.getvalue()


WHOLE = saved({'state_dict': {'a': torch.zeros(1000)}})
OLD = saved({'state_dict': {'a': torch.zeros(1000)}}, _use_new_zipfile_serialization=False)
SPARSE = torch.eye(3).to_sparse()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('name', 'content', 'reason'),
    [
        ('a.pth', b'not a checkpoint', 'it is a text file'),
        ('a.pth', 'nötig'.encode('latin1'), 'it is a text file'),
        ('a.pth', b'', 'is empty'),
        ('a.pth', bytes(5000), 'it is a file of zeros'),
        ('a.onnx', b'\x08\x0a\x12\x0bmmdet_ddetr:', 'it is a detector that was exported: .*open_detector'),
        ('a.onnx', b'\x08\x08:\x90\x8b', 'it is a detector that was exported'),
        ('a.xml', b'<?xml version="1.0"?>\n<net name="a" version="11">', 'it is a detector that was exported'),
        ('a.xml', b'<?xml version="1.0"?>\n<annotation>', 'it is a text file'),
        ('a.pt2', zipped('archive_format', 'data/weights/a'), 'it is a detector that was exported'),
        ('a.pt2', zipped('archive_format', 'data/sample_inputs/data.pkl'), 'it is a detector that was exported'),
        ('a.zip', zipped('photo.jpg'), 'it is a zip archive of something else'),
        ('a.pth', WHOLE[: len(WHOLE) // 2], 'it is a zip archive that is cut off'),
        ('a.pth', OLD[: len(OLD) // 2], 'it is a pickle that is cut off'),
        ('a.pth', b'\x89PNG\r\n\x1a\n' + bytes(100), 'it is a picture'),
        ('a.pth', b'version https://git-lfs.github.com/spec/v1\noid', 'it is only a pointer of Git LFS'),
        ('a.pth', b'\x02' + bytes(7) + b'{}\n', 'it is a file of safetensors: give it the suffix'),
        ('a.pth', saved({'a': torch.ones(1)}, pickle_protocol=4), 'another pickle_protocol than 2'),
        ('a.pth', bytes([129, 0, *range(1, 200)]), 'it holds nothing that torch.save writes$'),
        ('a.pth', saved([1]), 'holds a list, expected a checkpoint'),
        ('a.pth', saved({3: torch.ones(1)}), r'expected named tensors, .*got \[3\]'),
        ('a.pth', saved({'state_dict': {'w': 'x'}}), "has a str as 'w' in its state_dict"),
        ('a.pth', saved({'state_dict': {'w': torch.ones(2, device='meta')}}), 'state_dict.w is a tensor on the device'),
        ('a.pth', saved({'model': {'w': SPARSE}}), 'model.w is a tensor of layout sparse_coo'),
        ('a.pth', saved({'w': torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}), 'is a quantised tensor'),
        ('a.pth', saved({'w': np.zeros(2, 'U3')}), "a numpy.dtype of 'U3'"),
        ('a.safetensors', b'not a checkpoint', 'it is a text file'),
        ('a.safetensors', (2**60).to_bytes(8, 'little') + b'{}', 'cannot be read as safetensors'),
    ],
)
def test_one_sentence_that_names_the_file(tmp_path, name, content, reason):
    pytest.importorskip('safetensors') if name.endswith('safetensors') else None
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f'{path}.*{reason}') as info:
        load_checkpoint(path)
    assert '\n' not in str(info.value)


def test_a_file_of_a_million_pickles(tmp_path, monkeypatch):
    """Each costs a single byte; only the first few are looked at."""
    looked_at, genops = [], pickletools.genops
    monkeypatch.setattr(pickletools, 'genops', lambda stream: looked_at.append(1) or genops(stream))
    (tmp_path / 'a.pth').write_bytes(b'.' * 2_000_000)
    with pytest.raises(CheckpointError, match='a.pth'):
        load(tmp_path / 'a.pth')
    assert 1 < len(looked_at) <= 10


def test_folders_and_devices(tmp_path):
    os.mkfifo(tmp_path / 'fifo.pth')
    for path, reason in ((tmp_path / 'fifo.pth', 'not a regular file'), (tmp_path / 'none.pth', 'no checkpoint')):
        with pytest.raises(CheckpointError, match=reason):
            load(path)
    with pytest.raises(CheckpointError, match='has neither model.safetensors'):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint 'ftp://a/b.pth'"):
        load('ftp://a/b.pth')


@pytest.mark.parametrize(
    'content',
    [
        b'{',
        b'\xff\xfe{}',
        b'[' * 100_000,
        b'[1]',
        b'{"id2label": 3}',
        b'{"id2label": {"0": 7}}',
        b'{"id2label": ["a"]}',
    ],
)
def test_broken_config_of_the_hub(tmp_path, content):
    (tmp_path / 'config.json').write_bytes(content)
    with pytest.raises(CheckpointError, match=f'{tmp_path}/config.json'):
        read_class_names(tmp_path / 'config.json')


# --- numpy ------------------------------------------------------------------------------------------------------------


class Crafted:
    """Pickles as a numpy dtype with a state of its own."""

    def __init__(self, code, *state):
        self.reduced = np.dtype, (code, False, True), state

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    'crafted',
    [
        Crafted('O8', 3, '|', None, None, None, -1, -1, 63),
        Crafted('V8', 3, '|', None, ('a',), {'a': (np.dtype('f8'), 10**9)}, 8, 1, 0),
        Crafted('f8', 3, '<', None, ('a',), {'a': (np.dtype('f8'), 10**9)}, 8, 8, 0),  # elements that lie anywhere
        Crafted('f8', 3, '<', None, None, None, -1, -1, 1),  # numbers that are pointers
    ],
)
def test_crafted_dtypes_are_refused(tmp_path, crafted):
    torch.save({'a': crafted}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='a.pth.*asks for a numpy.dtype of'):
        load(tmp_path / 'a.pth')


def test_a_log_brings_no_methods(tmp_path):
    """mmengine keeps a log's methods for the whole process, so a file could exchange them for all logs."""
    log = HistoryBuffer([1.0, 3.0], [1, 1])
    log._statistics_methods = dict(mean=HistoryBuffer.max)
    torch.save({'log': log, 'best': np.float64(0.5)}, tmp_path / 'a.pth')
    loaded = load(tmp_path / 'a.pth')
    assert type(loaded['log']) is HistoryBuffer and type(loaded['log'].data[0]) is np.ndarray
    assert loaded['log'].statistics('mean') == HistoryBuffer([1.0, 3.0], [1, 1]).statistics('mean') == 2
    again = saved(loaded)
    assert b'mmdet_ddetr' not in zipfile.ZipFile(io.BytesIO(again)).read('archive/data.pkl')


# --- configs in checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def shapes():
    return get_config(NAME).to_dict()


@pytest.fixture
def config(shapes):
    return copy.deepcopy(shapes)


def put(config, path, value):
    *names, last = path.split('.')
    for name in names:
        config = config[int(name)] if name.isdigit() else config[name]
    config[int(last) if last.isdigit() else last] = value


@pytest.fixture(scope='module')
def weights():
    """Of the model that the config is of."""
    config = get_config(NAME)
    config.model.backbone.init_cfg = None
    return DDetrInferencer(config, device='cpu').model.state_dict()


PROGRAM = '__import__("os").system("touch {}")'


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        ('model', dict(type='os.system', command='touch {}')),
        ('model.type', 'subprocess.getoutput'),
        ('model.backbone', dict(type='os.system', command='touch {}')),
        ('model.neck', [dict(type='builtins.exec')]),
        ('model.bbox_head.loss_cls', dict(type='mmdet.apis.init_detector')),  # in the package, but not registered
        ('model.type', 'mmdet_ddetr.apis.DDetrInferencer'),
        ('model.type', 7),
        ('model.type', 'this'),  # a module
        ('model._scope_', 'antigravity'),
        ('model._scope_', ['mmdet']),
        ('model.test_cfg', dict(nms=dict(type=PROGRAM))),  # mmcv evaluates it
        ('model', dict(type='CameraMotionCompensation', warp_mode=PROGRAM)),  # mmdet evaluates it
        ('model.type', 'KnowledgeDistillationSingleStageDetector'),
        ('model.bbox_head.type', 'mmdet.models.detectors.lad.LAD'),
        ('test_dataloader.dataset.pipeline.0', dict(type='os.system', command='touch {}')),
        ('test_dataloader.dataset.pipeline.1.type', 'mmdet.BertModel'),  # of another registry
        ('test_dataloader.dataset.pipeline.0', 'os.getcwd'),
    ],
)
def test_a_stored_config_runs_nothing(tmp_path, config, path, value):
    trace = tmp_path / 'trace'
    put(config, path, json.loads(json.dumps(value).replace('{}', str(trace))))
    weights = tmp_path / 'epoch_1.pth'
    source = ''.join(f'{name} = {part!r}\n' for name, part in config.items())
    torch.save(dict(state_dict={'a': torch.zeros(1)}, meta=dict(cfg=source)), weights)
    with pytest.raises(CheckpointError, match=f'{weights}'):
        DDetrInferencer(weights=weights, device='cpu')
    assert not trace.exists()


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        ('model', dict(type='dilation')),  # a word of mmdet's in another place
        ('model.backbone', dict(type='nms')),
        ('model', dict(type='HungarianAssigner')),  # of another registry than the one that it is looked for in
        ('model.backbone', dict(type='HungarianAssigner')),
        ('model.bbox_head.loss_cls', dict(type='AnchorGenerator')),
        ('test_dataloader.dataset.pipeline.1', dict(type='PackDetInputs', _scope_='mmengine')),
    ],
)
def test_a_stored_config_imports_nothing(tmp_path, monkeypatch, config, weights, path, value):
    """Neither of the current folder nor of the path, though mmengine tries every name that a registry does not have."""
    trace, module = tmp_path / 'trace', tmp_path / f'{value["type"]}.py'
    module.write_text(f'open({str(trace)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    put(config, path, value)
    source = ''.join(f'{name} = {part!r}\n' for name, part in config.items())
    torch.save(dict(state_dict=weights, meta=dict(cfg=source)), tmp_path / 'epoch_1.pth')
    with pytest.raises(CheckpointError, match='epoch_1.pth is refused: .*registered'):
        DDetrInferencer(weights=tmp_path / 'epoch_1.pth', device='cpu')
    assert not trace.exists()


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        ('model.neck', dict(type='ConvModule', in_channels=1, out_channels=1, kernel_size=1, padding_mode='os.system')),
        (
            'test_dataloader.dataset.pipeline.1',
            dict(type='RandomChoiceResize', scales=[8], resize_type='os.system', command='touch {}'),
        ),
        (
            'test_dataloader.dataset.pipeline.1',
            dict(type='RandomChoiceResize', scales=[8], resize_type='RandomSamplingNegPos', tokenizer_name='{}'),
        ),
    ],
    ids=['padding_mode', 'resize_type', 'resize_type that reads files'],
)
def test_types_under_other_keys_run_nothing(tmp_path, config, weights, path, value):
    """mmcv takes types from values that are no ``type``, and builds them itself."""
    trace = tmp_path / 'trace'
    put(config, path, json.loads(json.dumps(value | dict(padding=f'touch {trace}') if 'neck' in path else value)))
    source = ''.join(f'{name} = {part!r}\n' for name, part in config.items()).replace('{}', str(trace))
    torch.save(dict(state_dict=weights, meta=dict(cfg=source)), tmp_path / 'epoch_1.pth')
    with pytest.raises(CheckpointError, match='epoch_1.pth is refused: .*registered'):
        DDetrInferencer(weights=tmp_path / 'epoch_1.pth', device='cpu')
    assert not trace.exists()


def test_words_of_mmdet(config):
    """They stay where mmdet expects them."""
    words = dict(
        test_cfg=dict(rpn=dict(nms=dict(type='nms')), rcnn=dict(nms=dict(type='soft_nms'))),
        neck=dict(type='mmdet.FPG', output_trans=dict(type='last_conv'), across_up_trans=dict(type='conv')),
        rpn_head=dict(type='mmdet.StageCascadeRPNHead', adapt_cfg=dict(type='dilation', dilation=3)),
    )
    config['model'].update(words)
    kept = stored_model(config, 'a.pth').model
    assert {name: kept[name] for name in words} == words


def test_a_stored_config_keeps_what_prediction_needs(config):
    """No hook, data set, address, file or backend of a stranger is built; the model is."""
    for path, value in {
        'custom_imports': dict(imports=['antigravity']),
        'custom_hooks': [dict(type='os.system')],
        'visualizer': dict(type='os.system'),
        'test_dataloader.collate_fn': 'os.system',
        'test_dataloader.dataset.type': 'os.system',
        'test_dataloader.dataset.metainfo': dict(classes='/etc/passwd'),
        'test_dataloader.dataset.pipeline.0.backend_args': dict(backend='memcached', sys_path='/tmp'),
        'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='http://127.0.0.1:1/a.pth'),
        'model.pretrained': 'torchvision://resnet50',
    }.items():
        put(config, path, value)
    kept = stored_model(config, 'a.pth')
    assert set(kept) == {'default_scope', 'model', 'test_dataloader', 'visualizer'}
    assert set(kept.test_dataloader.dataset) == {'type', 'pipeline'}
    text = str(kept)
    for word in ('os.system', 'antigravity', 'init_cfg', 'pretrained', 'passwd', 'backend_args', '127.0.0.1'):
        assert word not in text
    assert kept.model.bbox_head == config['model']['bbox_head']


def test_types_by_import_path(config):
    """Configs in Python's syntax are stored so; what they mean is looked up, and not imported."""
    config['model']['bbox_head']['loss_cls'] = dict(type='mmdet.models.losses.FocalLoss')
    config['model']['positional_encoding'] = dict(type='mmdet.models.layers.SinePositionalEncoding')
    config['test_dataloader']['dataset']['pipeline'][0]['type'] = 'mmcv.transforms.LoadImageFromFile'
    kept = stored_model(config, 'a.pth')
    assert kept.model.bbox_head.loss_cls.type == 'mmdet.FocalLoss'
    assert kept.model.positional_encoding.type == 'mmdet.SinePositionalEncoding'
    assert kept.test_dataloader.dataset.pipeline[0].type == 'mmengine.LoadImageFromFile'


@pytest.mark.parametrize(
    'source', ['a = ' + '[' * 5000, 'a = {[]: 1}', 'a = ' + '-' * 50000 + '1', 'a = "\0"', 'a = 0x']
)
def test_config_that_cannot_be_parsed(source):
    with pytest.raises(CheckpointError, match='the config in the checkpoint is refused'):
        stored_config.parse(source)


def test_config_of_another_kind():
    for checkpoint in (dict(meta=3), dict(message_hub=[1], meta=dict(cfg=5)), dict(message_hub=dict(runtime_info='x'))):
        assert stored_config.find(checkpoint) is None


def test_what_does_more_than_compute_is_known():
    """Every registered class that a stored config may name, by its source."""
    _import_registered()
    call = re.compile(r'(?<![\w.])(eval|exec|open|__import__|import_module)\(|fromfile\(|from_pretrained\(|os\.system')
    classes = {
        cls
        for root in (MODELS, TASK_UTILS, TRANSFORMS)
        for registry in _tree(root)
        for item in registry.module_dict.values()
        for cls in item.__mro__
        if cls.__module__.startswith(('mmdet', 'mmcv', 'mmengine'))
    }
    modules = {
        name for name in {cls.__module__ for cls in classes} if call.search(inspect.getsource(sys.modules[name]))
    }
    found = {c.__name__ for c in classes if c.__module__ in modules and call.search(inspect.getsource(c))}
    assert found and found <= MORE_THAN_COMPUTE, found - MORE_THAN_COMPUTE
