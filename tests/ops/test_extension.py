"""The compiled extension: its instruction sets, its schemas, its errors, and the package without it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_cases import KINDS, Case

import mmdet_ddetr
from mmdet_ddetr import ops
from mmdet_ddetr.ops import _load

HERE = Path(__file__).parent
PACKAGE = Path(mmdet_ddetr.__file__).parent
INSTRUCTION_SETS = ('portable', 'avx2', 'avx512')

needs_extension = pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='the extension is not built')


def run(*command, **environment):
    env = {'PYTHONPATH': str(PACKAGE.parent), 'OMP_NUM_THREADS': '1', **os.environ, **environment}
    done = subprocess.run(
        [sys.executable, *command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=HERE
    )
    return done.returncode, done.stdout


# --- instruction sets ------------------------------------------------------------------------------------------------


@needs_extension
@pytest.mark.slow
@pytest.mark.parametrize('name', INSTRUCTION_SETS)
def test_every_instruction_set(name):
    """All values and gradients again, with the instruction set named by the environment."""
    best = torch.ops.mmdet_ddetr.cpu_instruction_set()
    if INSTRUCTION_SETS.index(name) > INSTRUCTION_SETS.index(best):
        pytest.skip(f'this CPU has no {name}')
    if name == best and 'MMDET_DDETR_CPU' not in os.environ:
        pytest.skip('the tests themselves run with it')
    code = 'import torch, mmdet_ddetr.ops; print(torch.ops.mmdet_ddetr.cpu_instruction_set())'
    assert run('-c', code, MMDET_DDETR_CPU=name)[1].split()[-1] == name
    tests = [
        'test_attention_values.py',
        'test_deform_conv.py',
        'test_deform_roi_pool.py',
        'test_sigmoid_focal_loss.py',
        'test_matching_cost.py',
        'test_dropout.py',
        'test_depthwise_conv.py',
        'test_packed_linear.py',
        '-k',
        'not cuda and not gradcheck and not opcheck and not compile and not mmcv',
        '-q',
        '-p',
        'no:cacheprovider',
        '-p',
        'no:xdist',
    ]
    code, output = run('-m', 'pytest', *tests, MMDET_DDETR_CPU=name)
    assert code == 0, output


@needs_extension
def test_unknown_instruction_set():
    code = 'import torch, mmdet_ddetr.ops; torch.ops.mmdet_ddetr.cpu_instruction_set()'
    assert 'MMDET_DDETR_CPU must be portable, avx2 or avx512, got sse9' in run('-c', code, MMDET_DDETR_CPU='sse9')[1]


# --- schemas and errors ----------------------------------------------------------------------------------------------


@needs_extension
@pytest.mark.parametrize('schema', _load.SCHEMAS, ids=lambda schema: schema.split('(')[0])
def test_python_and_cpp_define_the_same_ops(schema):
    name = schema.split('(')[0]
    assert str(getattr(torch.ops.mmdet_ddetr, name).default._schema) == f'mmdet_ddetr::{schema}'


@needs_extension
def test_an_extension_of_older_sources_is_completed(monkeypatch):
    monkeypatch.setattr(_load, 'SCHEMAS', (*_load.SCHEMAS, 'only_in_newer_sources(Tensor x) -> Tensor'))
    with pytest.warns(RuntimeWarning, match=r'built from older sources; .* of only_in_newer_sources\.'):
        library = _load._complete(torch.library.Library('mmdet_ddetr', 'FRAGMENT'))
    library.impl('only_in_newer_sources', lambda x: x + 1, 'CompositeExplicitAutograd')
    assert torch.ops.mmdet_ddetr.only_in_newer_sources(torch.ones(1)) == 2


def native(case, *tensors):
    return case.call(*tensors)


def shapes_only(case, *tensors):
    return case.call(*[tensor.to('meta') for tensor in tensors])


@pytest.mark.parametrize('function', [pytest.param(native, marks=needs_extension), shapes_only])
@pytest.mark.parametrize('kind', KINDS)
def test_errors_name_the_argument(kind, function):
    points = {
        'locations': [('sampling_locations', 'B, Q, M, L, K, 2'), ('attention_weights', 'B, Q, M, L, K')],
        'points': [
            ('reference_points', 'B, Q, L, 2 or 4'),
            ('sampling_offsets', 'B, Q, M, L, K, 2'),
            ('attention_logits', r'B, Q, M, L\*K'),
        ],
    }
    case = Case(kind)
    with pytest.raises(RuntimeError, match=r'value must be \[B, S, M, D\], got \[2, 31, 24\]'):
        function(case, case.tensors[0].flatten(2), *case.tensors[1:])
    with pytest.raises(RuntimeError, match=r'spatial_shapes give 31 cells, but value \[2, 30, 3, 8\] has 30'):
        function(case, case.tensors[0][:, 1:], *case.tensors[1:])
    for i, (name, shape) in enumerate(points['locations' if kind == 'locations' else 'points'], 1):
        for dim in range(case.tensors[i].dim()):
            if name.startswith('sampling') and dim in (1, 4):
                continue  # these give Q and K
            wrong = list(case.tensors)
            wrong[i] = torch.cat([wrong[i], wrong[i].narrow(dim, 0, 1)], dim)
            with pytest.raises(
                RuntimeError, match=rf'{name} must be \[{shape}\] = \[.*\], got \[{wrong[i].shape[0]}, '
            ):
                function(case, *wrong)


@needs_extension
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: (t[0].int(), *t[1:]), 'value must be fp64, fp32, fp16 or bf16, got Int'),
        (lambda t: (t[0], t[1].double(), t[2]), 'sampling_locations must be Float .* got Double'),
        (lambda t: (t[0].half(), t[1].bfloat16(), t[2].bfloat16()), 'sampling_locations must be Half .* got BFloat16'),
        (
            lambda t: (t[0].half(), t[1], t[2].half()),
            'sampling_locations and attention_weights must have the same dtype',
        ),
    ],
)
def test_the_op_itself_is_strict_about_dtypes(change, message):
    case = Case()
    value, *points = change(case.tensors)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mmdet_ddetr.ms_deform_attn(value, case.flat_shapes, *points)


@needs_extension
def test_errors_of_the_backward():
    case = Case()
    backward = torch.ops.mmdet_ddetr.ms_deform_attn_backward
    with pytest.raises(RuntimeError, match=r'grad_output must be \[B, Q, M\*D\] = \[2, 5, 24\], got \[2, 5, 25\]'):
        backward(torch.ones(2, 5, 25), case.tensors[0], case.flat_shapes, *case.tensors[1:], False)
    with pytest.raises(RuntimeError, match='grad_output must be Float .* got Half'):
        backward(torch.ones(2, 5, 24).half(), case.tensors[0], case.flat_shapes, *case.tensors[1:], False)


def test_negative_and_odd_shapes():
    case = Case()
    if _load.EXTENSION_LOADED:
        with pytest.raises(RuntimeError, match=r'spatial_shapes must not be negative, got \(-6, -4\)'):
            ops.ms_deform_attn(case.tensors[0], [(-6, -4), (3, 2), (1, 1)], *case.tensors[1:])
        with pytest.raises(RuntimeError, match=r'spatial_shapes must hold \(H, W\) of each level, got 5 numbers'):
            torch.ops.mmdet_ddetr.ms_deform_attn(case.tensors[0], [6, 4, 3, 2, 1], *case.tensors[1:])
    with pytest.raises(ValueError, match=r'spatial_shapes must hold \(H, W\) of each level, got \[\(6, 4\), \(3,\)\]'):
        ops.ms_deform_attn(case.tensors[0], [(6, 4), (3,)], *case.tensors[1:])


def test_spatial_shapes_as_a_tensor():
    case = Case()
    expected = case.call(*case.tensors)
    case.shapes = torch.tensor(case.shapes)
    torch.testing.assert_close(case.call(*case.tensors), expected, rtol=0, atol=0)


# --- the stable ABI --------------------------------------------------------------------------------------------------


@needs_extension
@pytest.mark.skipif(shutil.which('nm') is None, reason='needs nm of binutils')
def test_needs_nothing_but_the_stable_abi():
    """What one build may take from PyTorch to load under later ones is its C interface; from Python, nothing."""
    library = next(PACKAGE.glob('_C.*'))
    lines = subprocess.run(['nm', '-D', '--undefined-only', library], capture_output=True, text=True, check=True).stdout
    symbols = {line.split()[-1] for line in lines.splitlines()}
    assert 'torch_call_dispatcher' in symbols
    cxx_runtime = re.compile(r'_Z.*@(GLIBCXX|CXXABI)|.*@(GLIBC|GCC|GLIBCXX|CXXABI|GOMP|OMP)_|__cuda|cuda[A-Z]')
    others = {symbol for symbol in symbols if not cxx_runtime.match(symbol)}
    weak = {'__gmon_start__', '_ITM_deregisterTMCloneTable', '_ITM_registerTMCloneTable', '__cxa_finalize'}
    assert [s for s in sorted(others - weak) if not s.startswith(('torch_', 'aoti_torch_'))] == []


# --- without the extension -----------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """The package folder of a checkout that was not built."""
    for folder in ('mmdet_ddetr', 'csrc'):
        (tmp_path / 'checkout' / folder).mkdir(parents=True)
    (tmp_path / 'checkout/setup.py').touch()
    return tmp_path / 'checkout/mmdet_ddetr'


def installed(site, direct_url=None, built=False):
    """The package folder of an installation."""
    (site / 'mmdet_ddetr').mkdir(parents=True)
    info = site / 'mmdet_ddetr-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Name: mmdet_ddetr\nVersion: 1.0\n')
    if direct_url:
        (info / 'direct_url.json').write_text(json.dumps({'url': direct_url, 'dir_info': {}}))
    if built:
        (site / 'mmdet_ddetr/_C.abi3.so').touch()
    return site / 'mmdet_ddetr'


def test_a_checkout_says_how_to_build(checkout):
    text = _load.how_to_build(checkout, [str(checkout.parent)], 'FORCE_CUDA=1 ')
    assert text.endswith(f': FORCE_CUDA=1 pip install --no-deps --no-build-isolation -e {checkout.parent}')


def test_a_checkout_that_hides_the_installed_package_says_so(checkout, tmp_path):
    """Python started in the checkout's root imports the source folder."""
    site = tmp_path / 'site'
    other = installed(site, built=True)
    text = _load.how_to_build(checkout, [str(checkout.parent), str(site)])
    assert f'found the source folder {checkout.parent} before the installed package {other}' in text


@pytest.mark.parametrize(
    'url, source',
    [
        ('file:///home/me/mmdet_ddetr', 'file:///home/me/mmdet_ddetr'),
        ('file:///home/me/mmdet_ddetr-1.0-py3-none-any.whl', 'the folder or archive that it was installed from'),
        (None, 'the folder or archive that it was installed from'),
    ],
)
def test_an_installed_package_says_how_to_install_it_again(tmp_path, url, source):
    text = _load.how_to_build(installed(tmp_path / 'site', url), [str(tmp_path / 'site')])
    assert 'apt install g++' in text
    assert text.endswith(f'--no-cache-dir --no-build-isolation {source}')  # pip would take the wheel that it has kept
    assert 'csrc/README' not in text, 'a wheel does not hold it'


def test_windows_has_none(checkout, monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'win32')
    assert 'Windows Subsystem for Linux' in _load.how_to_build(checkout, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    'wanted',
    [
        'by_hand or inference or autocast or vmap',
        'against_reference or against_fp64 or huge or coordinates or compile or export',
    ],
    ids=['some', 'more'],
)
def test_the_package_works_without_the_extension(wanted, tmp_path):
    """Values, gradients, compile, export, autocast and vmap are the same; one notice says what is missing."""
    (tmp_path / 'mmdet_ddetr').mkdir()
    for path in PACKAGE.iterdir():
        if not path.name.startswith(('_C.', '__pycache__')):
            (tmp_path / 'mmdet_ddetr' / path.name).symlink_to(path)
    environment = dict(PYTHONPATH=str(tmp_path))
    code, output = run('-c', 'import mmdet_ddetr.ops._load as load; print(load.EXTENSION_LOADED)', **environment)
    assert code == 0
    assert output.split()[-1] == 'False'
    assert output.count('the compiled ops are missing') == 1
    tests = [
        'test_attention_values.py',
        'test_attention_torch.py',
        'test_sigmoid_focal_loss.py',
        'test_dropout.py',
        '-q',
        '-p',
        'no:cacheprovider',
        '-p',
        'no:xdist',
    ]
    code, output = run('-m', 'pytest', *tests, '-k', f'not cuda and ({wanted})', **environment)
    assert code == 0, output
