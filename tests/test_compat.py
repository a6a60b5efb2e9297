"""The stand-in operators, the check of the stack and the checkpoints that torch may load."""

import importlib
import io
import math
import os
import pkgutil
import subprocess
import sys
import warnings
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import packaging
import pytest
import torch
from torch.nn import functional as F

import mmdet_ddetr
from mmdet_ddetr import compat

EXACT = dict(rtol=0, atol=0)
ROOT = Path(mmdet_ddetr.__file__).parents[1]

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def ext():
    module = importlib.import_module('mmcv._ext')
    if module.__spec__.origin != str(ROOT / 'mmdet_ddetr' / 'compat' / 'mmcv_ext.py'):
        pytest.skip('this mmcv is compiled')
    return module


# --- the module ---


def test_module_looks_installed(ext):
    assert ext.__name__ == ext.__spec__.name == 'mmcv._ext'
    assert importlib.util.find_spec('mmcv._ext') is ext.__spec__
    assert importlib.import_module('mmcv.ops').get_compiler_version() == 'n/a'  # collect_env prints it
    assert importlib.import_module('mmcv.ops').get_compiling_cuda_version() == 'n/a'


def test_missing_operator_raises_when_called(ext):
    with pytest.raises(NotImplementedError, match=r'^carafe_forward needs carafe_forward, a .*pip install .*mmcv'):
        ext.carafe_forward(torch.zeros(1), im2col_step=1)
    for name in ('__path__', '__wrapped__', '_private'):
        assert not hasattr(ext, name)


def test_missing_operator_names_what_was_called(ext):
    from mmcv.ops import CARAFE, box_iou_rotated

    boxes = torch.tensor([[5.0, 5.0, 2.0, 2.0, 0.1]])
    with pytest.raises(NotImplementedError, match=r'^mmcv\.ops\.box_iou_rotated\.box_iou_rotated needs'):
        box_iou_rotated(boxes, boxes)
    with pytest.raises(NotImplementedError, match=r'^mmcv\.ops\.carafe\.CARAFE needs carafe_forward'):
        CARAFE(1, 1, 2)(torch.rand(1, 4, 3, 3), torch.rand(1, 1, 6, 6))


def test_install_twice_changes_nothing():
    before = list(sys.meta_path), set(torch.serialization.get_safe_globals())
    compat.install()
    assert before == (list(sys.meta_path), set(torch.serialization.get_safe_globals()))
    for name in ('mmcv', 'mmcv._extra', 'mmcv.ops', '_ext'):
        assert compat._FINDER.find_spec(name) is None


def test_can_be_switched_off(monkeypatch):
    monkeypatch.setenv('MMDET_DDETR_COMPAT', '0')
    monkeypatch.setattr(sys, 'meta_path', [finder for finder in sys.meta_path if finder is not compat._FINDER])
    monkeypatch.setattr('mmdet_ddetr.compat.checkpoint.allow_mmengine_checkpoints', None)  # fails if called
    with warnings.catch_warnings():
        warnings.resetwarnings()
        compat.install()
        assert compat._FINDER not in sys.meta_path and warnings.filters == []


@pytest.mark.slow
def test_import_after_a_failed_import_of_mmdet(ext):
    """In a notebook: the first cell fails, `import mmdet_ddetr` is put in, and the cell is run again."""
    code = """
try:
    import mmdet.apis
except ModuleNotFoundError as error:
    print(error)
import mmdet_ddetr
import mmdet.apis
from mmdet_ddetr.apis import DDetrInferencer
print('works')
"""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "No module named 'mmcv._ext'" and 'works' in done.stdout, done.stderr


def test_every_mmdet_module_imports():
    import mmdet

    failed, count = {}, 0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for module in pkgutil.walk_packages(mmdet.__path__, 'mmdet.', onerror=lambda name: None):
            count += 1
            try:
                importlib.import_module(module.name)
            except Exception as error:
                failed[module.name] = repr(error)
    assert count > 400
    assert not failed


# --- the stack; every case is a folder of fake packages and an interpreter that sees nothing else ---

MMDET_LIMITS = """
mmcv_minimum_version = '2.0.0rc4'
mmcv_maximum_version = '2.2.0'
mmengine_minimum_version = '0.7.1'
mmengine_maximum_version = '1.0.0'
"""
VERSIONS = {'torch': '2.13.0+cpu', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}
RUN = 'import sys; sys.path[:0] = sys.argv[2:]; exec(sys.argv[1])'
CHECK = 'import runpy; runpy.run_path({!r})["check_stack"]()'.format(str(ROOT / 'mmdet_ddetr' / 'compat' / 'stack.py'))


@pytest.fixture
def site(tmp_path):
    """A folder with fakes of every package, in versions that go together."""
    for name, version in VERSIONS.items():
        write(tmp_path / name / '__init__.py', 'from .version import __version__\n')
        write(tmp_path / name / 'version.py', f'__version__ = {version!r}\n')
    write(tmp_path / 'mmdet' / '__init__.py', MMDET_LIMITS)
    write(tmp_path / 'mmengine' / 'utils' / 'package_utils.py', 'def is_installed():\n    import pkg_resources\n')
    write(tmp_path / 'pkg_resources.py', '')
    write(tmp_path / 'cv2.py', '')
    (tmp_path / 'packaging').symlink_to(Path(packaging.__file__).parent)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def remove(path):
    path.rename(path.with_name('gone-' + path.name))


def set_version(folder, version):
    write(folder / 'version.py', f'__version__ = {version!r}\n')


def run(code, *paths, only_these=True):
    """(last line of stderr, stdout) of ``code`` in an interpreter whose search path begins with, or is, ``paths``."""
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    flags = ['-S'] if only_these else []
    done = subprocess.run(
        [sys.executable, *flags, '-c', RUN, code, *map(str, paths)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (not done.stderr), done.stderr
    return (done.stderr.splitlines() or [''])[-1], done.stdout


BROKEN_STACKS = {
    'no libGL': (
        lambda site: write(site / 'cv2.py', 'raise ImportError("libGL.so.1: cannot open shared object file")'),
        'OpenCV does not load (libGL.so.1: cannot open shared object file): '
        'pip install --force-reinstall --no-deps "opencv-python-headless>=4.10,<5"',
    ),
    'no torch': (
        lambda site: remove(site / 'torch'),
        'mmdet_ddetr needs torch, which is not installed: pip install "torch>=2.10"',
    ),
    'no mmengine': (
        lambda site: remove(site / 'mmengine'),
        'mmdet_ddetr needs mmengine, which is not installed: pip install "mmengine>=0.10.7,<1"',
    ),
    'no mmcv': (
        lambda site: remove(site / 'mmcv'),
        'mmdet_ddetr needs mmcv, which is not installed: pip install "mmcv-lite>=2.1.0,<2.2"',
    ),
    'no mmdet': (
        lambda site: remove(site / 'mmdet'),
        'mmdet_ddetr needs mmdet, which is not installed: pip install "mmdet>=3.3.0,<4"',
    ),
    'leftovers of mmcv': (
        lambda site: remove(site / 'mmcv' / '__init__.py'),
        'mmdet_ddetr needs mmcv, which is not installed: pip install "mmcv-lite>=2.1.0,<2.2"',
    ),
    'old torch': (
        lambda site: set_version(site / 'torch', '2.9.1+cu128'),
        'mmdet_ddetr needs torch>=2.10, got 2.9.1+cu128: pip install "torch>=2.10"',
    ),
    'old mmdet': (
        lambda site: set_version(site / 'mmdet', '2.28.2'),
        'mmdet_ddetr needs mmdet>=3.3.0, got 2.28.2: pip install "mmdet>=3.3.0,<4"',
    ),
    'new setuptools': (
        lambda site: remove(site / 'pkg_resources.py'),
        'mmengine 0.10.7 needs pkg_resources, which setuptools has no more since 82: pip install "setuptools>=77,<82"',
    ),
    'new mmcv': (
        lambda site: set_version(site / 'mmcv', '2.2.0'),
        'mmdet 3.3.0 needs mmcv>=2.0.0rc4,<2.2.0, got 2.2.0: '
        'pip uninstall -y mmcv mmcv-lite && pip install "mmcv-lite>=2.1.0,<2.2"',
    ),
    'old mmcv': (
        lambda site: set_version(site / 'mmcv', '1.7.2'),
        'mmdet 3.3.0 needs mmcv>=2.0.0rc4,<2.2.0, got 1.7.2: '
        'pip uninstall -y mmcv mmcv-lite && pip install "mmcv-lite>=2.1.0,<2.2"',
    ),
}


@pytest.mark.parametrize('case', BROKEN_STACKS)
def test_broken_stack_is_one_sentence(site, case):
    spoil, sentence = BROKEN_STACKS[case]
    spoil(site)
    assert run('import mmdet_ddetr', site, ROOT) == (f'ImportError: {sentence}', '')


def test_extension_for_another_torch_is_one_sentence(site):
    (site / 'mmcv' / f'_ext{EXTENSION_SUFFIXES[0]}').write_bytes(b'not a library')
    sentence, _ = run('import mmdet_ddetr', site, ROOT)
    assert sentence.startswith('ImportError: the compiled operators of mmcv 2.1.0 do not load with torch 2.13.0+cpu (')
    assert sentence.endswith('): pip uninstall -y mmcv mmcv-lite && pip install "mmcv-lite>=2.1.0,<2.2"')


def test_sound_stacks_pass(site):
    assert run(CHECK, site) == ('', '')
    set_version(site / 'torch', '2.10.0a0+git1234')
    assert run(CHECK, site) == ('', '')
    (site / 'mmcv' / '_ext.abi3-elsewhere.so').write_bytes(b'for another Python: not seen by this one')
    assert run(CHECK, site) == ('', '')


def test_onedl_forks_pass(site):
    """Their version comes from the metadata, mmdet sets no limits and mmengine needs no pkg_resources."""
    for name, distribution, version in (('mmcv', 'onedl-mmcv', '2.3.6'), ('mmdet', 'onedl-mmdetection', '3.5.1')):
        write(
            site / name / 'version.py',
            f'from importlib.metadata import version\n__version__ = version({distribution!r})',
        )
        info = site / f'{distribution.replace("-", "_")}-{version}.dist-info'
        write(info / 'METADATA', f'Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n')
    write(site / 'mmdet' / '__init__.py', 'from .version import __version__\n')
    write(site / 'mmengine' / 'utils' / 'package_utils.py', 'import importlib.metadata\n')
    remove(site / 'pkg_resources.py')
    assert run(CHECK, site) == ('', '')


def test_compiled_mmcv_wins_and_nothing_is_imported_early(tmp_path):
    set_version(tmp_path / 'mmcv', '2.1.0')
    write(tmp_path / 'mmcv' / '__init__.py', '')
    write(tmp_path / 'mmcv' / '_ext.py', 'nms = "compiled"')
    code = (
        'import mmdet_ddetr; print(sorted({"mmcv", "mmdet"} & {*sys.modules}))\nimport mmcv._ext; print(mmcv._ext.nms)'
    )
    assert run(code, tmp_path, ROOT, only_these=False) == ('', '[]\ncompiled\n')


# --- checkpoints ---


class Evil:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def make_runner(tmp_path):
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Line(BaseModel):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)

        def forward(self, x, mode):
            return {'loss': self.linear(x).square().mean()}

    def make(name, **arguments):
        return Runner(
            Line(),
            str(tmp_path),
            train_dataloader=torch.utils.data.DataLoader([(torch.ones(1),)] * 2),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
            param_scheduler=[
                dict(type='OneCycleLR', eta_max=0.1, total_steps=9),  # writes a reference to its method
                dict(type='MultiStepLR', milestones=[1]),
            ],
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
            default_scope='mmengine',
            experiment_name=name,
            log_level='ERROR',
            **arguments,
        )

    return make


def test_runner_resumes_its_checkpoint(make_runner, tmp_path):
    first = make_runner('compat-first')
    first.train()
    second = make_runner('compat-second', load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    second.train()
    assert second.iter == 4
    logs = [runner.message_hub.get_scalar('train/loss').data[0] for runner in (first, second)]
    assert len(logs[0]) == 4
    np.testing.assert_array_equal(*logs)
    torch.testing.assert_close(second.model.state_dict(), first.model.state_dict(), **EXACT)


def saved(content, **renamed):
    """A checkpoint file in memory, with module names replaced in its pickle."""
    file = io.BytesIO()
    torch.save(content, file)
    source, target = zipfile.ZipFile(file), io.BytesIO()
    with zipfile.ZipFile(target, 'w') as out:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('data.pkl'):
                for old, new in renamed.values():
                    content = content.replace(b'c' + old.encode() + b'\n', b'c' + new.encode() + b'\n')
            out.writestr(name, content)
    target.seek(0)
    return target


@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'], ids=['numpy 1', 'numpy 2'])
@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', 'i4', 'i8', 'u1', '?'])
def test_logs_of_either_numpy_load(core, dtype):
    from mmengine.logging import HistoryBuffer

    ours = np.empty(0).__reduce__()[0].__module__
    history = HistoryBuffer(np.ones(3, dtype), np.ones(3, dtype))
    file = saved({'log': history, 'best': np.dtype(dtype).type(1)}, core=(ours, f'{core}.multiarray'))
    assert core.encode() + b'.multiarray' in file.getvalue()
    loaded = torch.load(file)
    np.testing.assert_array_equal(loaded['log'].data, history.data)
    assert loaded['best'] == 1
    assert loaded['log'].statistics('mean') == history.mean()


@pytest.mark.parametrize(('function', 'argument'), [(os.system, 'touch {}'), (exec, 'open({!r}, "w")')])
def test_a_call_in_a_checkpoint_is_refused(tmp_path, function, argument):
    proof, path = tmp_path / 'proof', tmp_path / 'evil.pth'
    torch.save({'state_dict': {}, 'meta': Evil(function, argument.format(str(proof)))}, path)
    with pytest.raises(UnpicklingError, match=f'Weights only load failed(.|\n)*{function.__name__}'):
        torch.load(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the file is armed
    assert proof.exists()


def test_only_the_methods_that_mmengine_stores_are_reachable():
    from mmengine.logging import HistoryBuffer

    for arguments in [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile'), ('min', 'join'), ([], 'append')]:
        with pytest.raises(UnpicklingError, match=f'asks for attribute {arguments[1]!r} of'):
            torch.load(saved(Evil(getattr, *arguments)))
    assert torch.load(saved(Evil(getattr, HistoryBuffer, 'mean'))) is HistoryBuffer.mean


# --- non-maximum suppression ---

# IoU of 0 and 1: 80 / 100; with offset 1, where a box from 0 to 10 has 11 pixels: 99 / 121 = 0.818
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30]])
SCORES = torch.tensor([0.6, 0.9, 0.3])


def random_boxes(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * 60
    size = torch.rand(count, 2, generator=rng) * 40
    return torch.cat((corner, corner + size), 1), torch.rand(count, generator=rng)


def iou_of(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    overlap = max(width, 0) * max(height, 0)
    area_a, area_b = ((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b))
    return overlap / (area_a + area_b - overlap)


def nms_by_loops(boxes, scores, threshold, offset):
    boxes, scores = boxes.tolist(), scores.tolist()
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou_of(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize(
    ('threshold', 'offset', 'kept'), [(0.5, 0, [1, 2]), (0.79, 0, [1, 2]), (0.81, 0, [1, 0, 2]), (0.81, 1, [1, 2])]
)
def test_nms_by_hand(threshold, offset, kept):
    from mmcv.ops import nms

    dets, indices = nms(BOXES, SCORES, threshold, offset)
    assert indices.dtype == torch.long and indices.tolist() == kept
    torch.testing.assert_close(dets, torch.cat((BOXES, SCORES[:, None]), 1)[kept], **EXACT)


def test_nms_drops_only_above_the_threshold(ext):
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])  # IoU exactly 0.5
    assert ext.nms(boxes, torch.tensor([1.0, 1.0]), iou_threshold=0.5, offset=0).tolist() == [0, 1]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_nms_against_loops(offset, dtype):
    from mmcv.ops import nms

    boxes, scores = (x.to(dtype) for x in random_boxes(120))
    kept = nms_by_loops(boxes, scores, 0.3, offset)
    assert 20 < len(kept) < 100
    assert nms(boxes, scores, 0.3, offset)[1].tolist() == kept
    assert nms(boxes.numpy(), scores.numpy(), 0.3, offset)[1].tolist() == kept
    assert nms(boxes.requires_grad_(), scores, 0.3, offset, max_num=7)[1].tolist() == kept[:7]
    above = [i for i in kept if scores[i] > 0.4]
    assert nms(boxes, scores, 0.3, offset, score_threshold=0.4)[1].tolist() == above


def test_nms_of_odd_input(ext):
    assert ext.nms(torch.zeros(0, 4), torch.zeros(0), iou_threshold=0.5, offset=0).tolist() == []
    points = torch.tensor([[3.0, 1, 3, 1]]).expand(3, 4)  # no area, no overlap
    assert ext.nms(points, torch.tensor([0.1, 0.3, 0.2]), iou_threshold=0.0, offset=0).tolist() == [1, 2, 0]
    apart = torch.arange(0, 400, 2).float()[:, None] + torch.tensor([0.0, 0, 1, 1])
    assert ext.nms(apart, torch.ones(200), iou_threshold=0.5, offset=0).tolist() == list(range(200))  # ties: in order
    with_nan = torch.cat((torch.full((1, 4), torch.nan), BOXES))
    assert ext.nms(with_nan, torch.tensor([1, 0.6, 0.9, 0.3]), iou_threshold=0.5, offset=0).tolist() == [0, 2, 3]
    assert ext.nms(BOXES.bfloat16(), SCORES.bfloat16(), iou_threshold=0.5, offset=0).tolist() == [1, 2]


@pytest.mark.parametrize('split_thr', [10000, 50], ids=['by offset', 'class by class'])
def test_batched_nms_keeps_classes_apart(split_thr):
    from mmcv.ops import batched_nms

    boxes, scores = random_boxes(90)
    labels = torch.arange(90) % 3
    kept = [
        labels.eq(c).nonzero()[:, 0][nms_by_loops(boxes[labels == c], scores[labels == c], 0.3, 0)] for c in range(3)
    ]
    kept = torch.cat(kept)
    kept = kept[scores[kept].argsort(descending=True)]
    dets, indices = batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.3, split_thr=split_thr))
    assert indices.tolist() == kept.tolist()
    torch.testing.assert_close(dets, torch.cat((boxes, scores[:, None]), 1)[kept], **EXACT)


# --- soft NMS ---


def soft_nms_by_loops(boxes, scores, threshold, sigma, min_score, method, offset):
    boxes, scores = boxes.tolist(), dict(enumerate(scores.tolist()))
    kept = []
    while scores:
        best = max(scores, key=scores.get)
        kept.append((best, scores.pop(best)))
        for i in list(scores):
            iou = iou_of(boxes[best], boxes[i], offset)
            scores[i] *= {
                'naive': 0 if iou >= threshold else 1,
                'linear': 1 - iou if iou >= threshold else 1,
                'gaussian': math.exp(-(iou**2) / sigma),
            }[method]
            if scores[i] < min_score:
                del scores[i]
    return kept


@pytest.mark.parametrize(
    ('method', 'kept', 'decayed'),
    [
        ('naive', [0, 2], [0.9, 0.45]),
        ('linear', [0, 2, 1], [0.9, 0.45, 0.4]),  # 0.8 * (1 - 0.5) falls behind 0.45
        ('gaussian', [0, 1, 2], [0.9, 0.8 * math.exp(-0.25 / 0.5), 0.45]),
    ],
)
def test_soft_nms_by_hand(method, kept, decayed):
    from mmcv.ops import soft_nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])  # IoU of the first two: 0.5
    dets, indices = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.45]), 0.3, 0.5, 1e-3, method)
    assert indices.tolist() == kept
    torch.testing.assert_close(dets, torch.cat((boxes[kept], torch.tensor(decayed)[:, None]), 1))


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_against_loops(method, offset):
    from mmcv.ops import soft_nms

    boxes, scores = (x.double() for x in random_boxes(80))
    indices, decayed = zip(*soft_nms_by_loops(boxes, scores, 0.3, 0.5, 0.2, method, offset))
    assert 10 < len(indices) < 80
    dets, kept = soft_nms(boxes, scores, 0.3, 0.5, 0.2, method, offset)
    assert kept.tolist() == list(indices)
    torch.testing.assert_close(dets[:, 4], torch.tensor(decayed, dtype=torch.double))
    torch.testing.assert_close(dets[:, :4], boxes[kept], **EXACT)
    torch.testing.assert_close(scores, random_boxes(80)[1].double(), **EXACT)  # the caller's scores are untouched


def test_soft_nms_of_odd_input():
    from mmcv.ops import soft_nms

    dets, kept = soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.tolist() == []
    points = np.array([[4, 3, 5, 3], [4, 3, 5, 4], *[[3, 1, 3, 1]] * 4], np.float32)
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.4, 0.0], np.float32)
    dets, kept = soft_nms(points, scores, 0.6, 0.5)  # the example in mmcv's docstring
    assert isinstance(dets, np.ndarray) and len(dets) == len(kept) == 5
    np.testing.assert_array_equal(dets[:, 4], scores[:5])
    np.testing.assert_array_equal(soft_nms(points, scores, method='gaussian')[0][:, 4], scores[:5])


# --- multi-scale deformable attention ---


def test_ms_deform_attn_by_hand():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    value = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).requires_grad_()  # one level of one row
    # Half way between the two cells' centres, a quarter of a cell below them: 0.75 * (1 + 3) / 2 = 1.5
    location = torch.tensor([0.5, 0.75]).view(1, 1, 1, 1, 1, 2).requires_grad_()
    weight = torch.tensor([0.25]).view(1, 1, 1, 1, 1).requires_grad_()
    output = MultiScaleDeformableAttnFunction.apply(
        value, torch.tensor([[1, 2]]), torch.tensor([0]), location, weight, 64
    )
    assert output.tolist() == [[[0.25 * 1.5]]]
    output.sum().backward()
    assert value.grad.flatten().tolist() == [0.25 * 0.75 / 2] * 2
    assert weight.grad.item() == 1.5
    # A step of 1 passes two cells in x, along which the row rises by 2, and one in y, where it falls from 2 to 0.
    assert location.grad.flatten().tolist() == [0.25 * 0.75 * 2 * 2, 0.25 * -2]


def test_ms_deform_attn_against_mmcv():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    rng = torch.Generator().manual_seed(0)
    shapes, B, Q, M, D, K = torch.tensor([(5, 7), (3, 2)]), 2, 11, 3, 5, 4
    starts = torch.tensor([0, 35])
    inputs = [
        torch.randn(B, 41, M, D, generator=rng, dtype=torch.double),
        torch.rand(B, Q, M, 2, K, 2, generator=rng, dtype=torch.double) * 1.4 - 0.2,
        torch.rand(B, Q, M, 2, K, generator=rng, dtype=torch.double),
    ]
    weights = torch.randn(B, Q, M * D, generator=rng, dtype=torch.double)

    def run_both(function, *more):
        value, locations, attention = leaves = [x.clone().requires_grad_() for x in inputs]
        output = function(value, shapes, *more[:1], locations, attention, *more[1:])
        return output, torch.autograd.grad((output * weights).sum(), leaves)

    torch.testing.assert_close(
        run_both(MultiScaleDeformableAttnFunction.apply, starts, 64), run_both(multi_scale_deformable_attn_pytorch)
    )


# --- focal losses ---

# At logit 0 the probability is 0.5: a positive costs 0.25 * 0.5^2 * ln 2, a negative 0.75 * 0.5^2 * ln 2.
POSITIVE, NEGATIVE = 0.0625 * math.log(2), 0.1875 * math.log(2)


def test_sigmoid_focal_loss_by_hand():
    from mmcv.ops import sigmoid_focal_loss

    target = torch.tensor([1, 0, 2])  # 2 of two classes: background
    loss = sigmoid_focal_loss(torch.zeros(3, 2), target, 2.0, 0.25, None, 'none')
    expected = [[NEGATIVE, POSITIVE], [POSITIVE, NEGATIVE], [NEGATIVE, NEGATIVE]]
    torch.testing.assert_close(loss, torch.tensor(expected))
    weight = torch.tensor([2.0, 3.0])  # of the target's class
    loss = sigmoid_focal_loss(torch.zeros(2, 2), target[:2], 2.0, 0.25, weight, 'none')
    torch.testing.assert_close(loss, torch.tensor([[3 * NEGATIVE, 3 * POSITIVE], [2 * POSITIVE, 2 * NEGATIVE]]))


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_sigmoid_focal_loss_against_autograd(gamma, weighted, reduction):
    from mmcv.ops import sigmoid_focal_loss

    rng = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(9, 4, generator=rng, dtype=torch.double)).requires_grad_()
    target = torch.randint(0, 4 if weighted else 5, (9,), generator=rng)
    weight = torch.rand(4, generator=rng, dtype=torch.double) + 0.5 if weighted else None

    positive = F.one_hot(target, 5)[:, :4]
    right = torch.where(positive == 1, logits.sigmoid(), 1 - logits.sigmoid())
    alpha = torch.where(positive == 1, 0.25, 0.75)
    expected = -alpha * (1 - right) ** gamma * right.log() * (weight[target][:, None] if weighted else 1)
    expected = expected.sum() / (9 if reduction == 'mean' else 1)

    loss = sigmoid_focal_loss(logits, target, gamma, 0.25, weight, reduction)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


def test_softmax_focal_loss_by_hand():
    from mmcv.ops import softmax_focal_loss

    loss = softmax_focal_loss(torch.zeros(2, 2), torch.tensor([1, 0]), 2.0, 0.25, torch.tensor([2.0, 3.0]), 'none')
    torch.testing.assert_close(loss, torch.tensor([3 * POSITIVE, 2 * POSITIVE]))


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('weighted', [False, True])
def test_softmax_focal_loss_against_autograd(gamma, weighted):
    from mmcv.ops import softmax_focal_loss

    rng = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(9, 4, generator=rng, dtype=torch.double)).requires_grad_()
    target = torch.randint(0, 4, (9,), generator=rng)
    weight = torch.rand(4, generator=rng, dtype=torch.double) + 0.5 if weighted else None
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    expected = -0.25 * (1 - p) ** gamma * p.log() * (weight[target] if weighted else 1)

    loss = softmax_focal_loss(logits, target, gamma, 0.25, weight, 'mean')
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected.mean(), logits))


def test_focal_losses_of_odd_input(ext):
    from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss

    nothing = torch.zeros(0, 3, requires_grad=True)
    total = sigmoid_focal_loss(nothing, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'sum')
    assert total == 0 and torch.autograd.grad(total, nothing)[0].shape == (0, 3)
    for loss in (sigmoid_focal_loss, softmax_focal_loss):
        logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
        total = loss(logits, torch.tensor([0, 0]), 0.5, 0.25, None, 'sum')
        assert total.isfinite() and total > 10
        assert torch.autograd.grad(total, logits)[0].isfinite().all()
    output = torch.full((2,), 7.0)
    ext.softmax_focal_loss_forward(torch.full((2, 2), 0.5), torch.tensor([-1, 1]), torch.empty(0), output, 2.0, 0.25)
    torch.testing.assert_close(output, torch.tensor([0, POSITIVE]))  # a negative target costs nothing


# --- RoIAlign ---

RAMP = (10 * torch.arange(6.0)[:, None] + torch.arange(8.0)).view(1, 1, 6, 8)  # value at (y, x): 10 y + x


def roi_align_by_loops(features, rois, size, scale, sampling_ratio, mode, aligned):
    """The definition, one sample at a time; differentiable in ``features``."""
    H, W = features.shape[2:]

    def sample(features, y, x):  # [C, H, W] -> [C]
        if not (-1 <= y <= H and -1 <= x <= W):
            return features[:, 0, 0] * 0
        y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, H - 1), min(x0 + 1, W - 1)
        top = (1 - x + x0) * features[:, y0, x0] + (x - x0) * features[:, y0, x1]
        bottom = (1 - x + x0) * features[:, y1, x0] + (x - x0) * features[:, y1, x1]
        return (1 - y + y0) * top + (y - y0) * bottom

    def pool(roi, row, column):
        shift = 0.5 if aligned else 0
        x1, y1, x2, y2 = (c * scale - shift for c in roi[1:])
        height, width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
        height, width = height / size[0], width / size[1]
        rows, columns = sampling_ratio or math.ceil(height), sampling_ratio or math.ceil(width)
        samples = [
            sample(
                features[int(roi[0])],
                y1 + (row + (i + 0.5) / rows) * height,
                x1 + (column + (j + 0.5) / columns) * width,
            )
            for i in range(rows)
            for j in range(columns)
        ]
        samples = torch.stack(samples)
        return samples.mean(0) if mode == 'avg' else samples.max(0)[0]

    pooled = [[[pool(roi, i, j) for j in range(size[1])] for i in range(size[0])] for roi in rois.tolist()]
    return torch.stack([torch.stack([torch.stack(row) for row in roi]) for roi in pooled]).permute(0, 3, 1, 2)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize(
    ('mode', 'aligned', 'expected'),
    [
        # Bins of 2 x 2 cells; the first covers 0.5 to 2.5 where the centre of the first cell is 0, its middle is 1.5.
        ('avg', True, [[16.5, 18.5], [36.5, 38.5]]),
        ('avg', False, [[22, 24], [42, 44]]),
        # Samples at a quarter and three quarters of a bin: the last is at 2.
        ('max', True, [[22, 24], [42, 44]]),
    ],
)
def test_roi_align_by_hand(mode, aligned, expected, sampling_ratio):
    from mmcv.ops import roi_align

    for scale in (1.0, 0.5):
        roi = torch.tensor([[0, 1, 1, 5, 5]]) / torch.tensor([1, *[scale] * 4])
        output = roi_align(RAMP, roi, 2, scale, sampling_ratio, mode, aligned)
        torch.testing.assert_close(output, torch.tensor([[expected]], dtype=torch.float))


@pytest.mark.parametrize(('y', 'x', 'expected'), [(6, 8, 58), (-1, -1, 1), (6.01, 8, 0), (6, 8.01, 0), (-1.01, -1, 0)])
def test_roi_align_at_the_border(y, x, expected):
    """Up to one cell beyond the first and the last cell's centre counts as on the border."""
    from mmcv.ops import roi_align

    roi = torch.tensor([[0, x - 1, y - 1, x + 1, y + 1]])  # one bin, one sample in its middle
    assert roi_align(RAMP + 1, roi, 1, 1.0, 1, 'avg', False).item() == expected


@pytest.mark.parametrize('sampling_ratio', [0, 3])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_against_loops(mode, aligned, sampling_ratio):
    from mmcv.ops import roi_align

    rng = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 5, 7, generator=rng, dtype=torch.double).requires_grad_()
    rois = torch.tensor(
        [
            [1, 3.3, 2.1, 9.7, 8.4],
            [0, 0, 0, 0.6, 0.9],  # smaller than a cell
            [1, -4, -5, 8, 4],  # reaches out at the top left
            [0, 5, 3, 21, 17],  # and at the bottom right
            [0, 40, 3, 49, 6],  # wholly outside
            [1, 1, 2, 13, 3],
        ],
        dtype=torch.double,
    )
    expected = roi_align_by_loops(features, rois, (2, 3), 0.6, sampling_ratio, mode, aligned)
    output = roi_align(features, rois, (2, 3), 0.6, sampling_ratio, mode, aligned)
    torch.testing.assert_close(output, expected)
    weights = torch.randn(output.shape, generator=rng, dtype=torch.double).transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(
        torch.autograd.grad((output * weights).sum(), features),
        torch.autograd.grad((expected * weights).sum(), features),
    )


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_of_odd_input(mode):
    from mmcv.ops import roi_align

    features = RAMP.clone().requires_grad_()
    assert roi_align(features, torch.zeros(0, 5), (2, 3), 1.0, 0, mode).shape == (0, 1, 2, 3)
    for rois in ([[0, 3, 3, 3, 3]], [[0, 3, 3, 3, 3], [0, 1, 1, 1, 5]], []):  # no width: no sample
        output = roi_align(features, torch.tensor(rois, dtype=torch.float).view(-1, 5), 2, 1.0, 0, mode)
        assert not output.any()
        (gradient,) = torch.autograd.grad(output.sum(), features)
        assert gradient.shape == features.shape and not gradient.any()
    output = roi_align(features, torch.tensor([[0, 3.0, 3, 3, 3], [0, 1, 1, 5, 5]]), 1, 1.0, 0, mode)
    assert output.flatten().tolist() == [0, 27.5 if mode == 'avg' else 44]
    assert not torch.autograd.grad(output[0].sum(), features)[0].any()
    half = roi_align(RAMP.half(), torch.tensor([[0, 1, 1, 5, 5]]).half(), 1, 1.0, 0, mode)
    assert half.dtype == torch.half and half.item() == (27.5 if mode == 'avg' else 44)
    with pytest.raises(IndexError, match=r'image indices in \[0, 1\), got 1'):
        roi_align(features, torch.tensor([[1.0, 0, 0, 1, 1]]), 2)
    with pytest.raises(ValueError, match='x2 >= x1'):
        roi_align(features, torch.tensor([[0.0, 3, 0, 1, 1]]), 2)


# --- mmdet's detectors, shrunk ---


def two_stage(config):
    config.neck.update(in_channels=[64, 128, 256, 512], out_channels=16)
    config.rpn_head.update(in_channels=16, feat_channels=16)
    config.roi_head.bbox_roi_extractor.out_channels = 16
    config.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)
    config.test_cfg.rcnn.score_thr = 0.001  # untrained, the scores are about 1 / 81


def soft(config):
    two_stage(config)
    config.test_cfg.rcnn.update(nms=dict(type='soft_nms', iou_threshold=0.3, min_score=0.001))


def one_stage(config):
    config.neck.update(in_channels=[64, 128, 256, 512], out_channels=16)
    config.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)


DETECTORS = {
    'faster-rcnn': ('_base_/models/faster-rcnn_r50_fpn.py', two_stage),
    'soft-nms': ('_base_/models/faster-rcnn_r50_fpn.py', soft),
    'retinanet': ('_base_/models/retinanet_r50_fpn.py', one_stage),
    'deformable-detr': ('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', None),
    'dino': ('dino/dino-4scale_r50_8xb2-12e_coco.py', None),
}


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow) if name == 'soft-nms' else name for name in DETECTORS]
)
def test_detectors_of_mmdet_run(name):
    import mmdet
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    from mmdet_ddetr.testing import make_batch, randomise, shrink, without_download

    path, change = DETECTORS[name]
    config = Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / path).model
    if change is None:
        shrink(config)
    else:
        without_download(config).backbone.depth = 18
        change(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config)
    model.init_weights()
    randomise(model)  # the last layers begin at zero and would pass no gradient on
    inputs, samples = make_batch([(96, 128), (90, 100)], [3, 2], 80)
    for sample in samples:
        sample.set_metainfo(dict(pad_shape=inputs.shape[2:]))

    losses = model(inputs, samples, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite() and total > 0
    gradient = model.backbone.layer4[0].conv1.weight.grad
    assert gradient.isfinite().all() and gradient.any()

    model.eval()
    with torch.no_grad():
        if name == 'retinanet':  # an untrained one is certain that there is nothing
            model.bbox_head.retina_cls.bias.fill_(0)
        assert model(inputs, samples, mode='tensor')
        for result in model(inputs, samples, mode='predict'):
            found = result.pred_instances
            assert len(found) > 0 and found.bboxes.shape == (len(found), 4)
            assert found.bboxes.isfinite().all() and (found.scores.diff() <= 0).all()


def test_focal_loss_of_mmdet_is_the_same_with_the_operator():
    """mmdet uses the operator on CUDA and its own PyTorch formula elsewhere."""
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss, sigmoid_focal_loss

    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 3, generator=rng, requires_grad=True)
    target = torch.randint(0, 4, (20,), generator=rng)
    weight = torch.rand(20, generator=rng)
    ours = sigmoid_focal_loss(logits, target, weight, avg_factor=7)
    theirs = py_sigmoid_focal_loss(logits, F.one_hot(target, 4)[:, :3], weight, avg_factor=7)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))
