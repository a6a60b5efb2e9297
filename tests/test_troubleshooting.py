"""docs/troubleshooting.md: its messages are those that users see, and each has a remedy."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from documented import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from scipy.optimize import linear_sum_assignment

PAGE = ROOT / 'docs' / 'troubleshooting.md'
ENTRIES = dict(re.findall(r'^### (.+)\n((?:(?!^##).*\n?)*)', PAGE.read_text(), re.MULTILINE))
MESSAGES = [
    (title, line)
    for title, text in ENTRIES.items()
    for block in re.findall(r'^```\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]

# Part of a message -> the file that it comes from, in an installed package or in this one.
WRITTEN_IN = {
    ' is used but incompatible. ': 'mmdet/__init__.py',
    'the compiled operators of mmcv ': 'mmdet_ddetr/compat/stack.py',
    'mmdet_ddetr: the compiled ops are missing (': 'mmdet_ddetr/ops/_load.py',
    ', a compiled operator of mmcv, for which mmdet_ddetr does not ': 'mmdet_ddetr/compat/mmcv_ext.py',
    ' is not in the ': 'mmengine/registry/build_functions.py',
    'Failed to search registry with scope "': 'mmengine/registry/registry.py',
    'mmengine does not support to load ': 'mmengine/config/utils.py',
    'matching cost is not finite in prediction layer': 'mmdet_ddetr/ops/linear_sum_assignment.py',
    ') is killed by signal: ': 'torch/lib/libtorch_python.so',
    'Expected to have finished reduction in the prior iteration before ': 'torch/lib/libtorch_cpu.so',
    'Weights only load failed. ': 'torch/serialization.py',
    ' was not an allowed global by default.': 'torch/_weights_only_unpickler.py',
    ': copying a param with shape ': 'torch/nn/modules/module.py',
    'CheckpointError': 'mmdet_ddetr/checkpoints/errors.py',
    'No ONNX function found for ': 'torch/onnx/_internal/exporter/_core.py',
    "Exporting the operator '": 'torch/onnx/errors.py',
    'torch._shape_as_tensor': 'mmdet/models/detectors/deformable_detr.py',
}
# Part of a message -> whose it is: not installed here, or said by the machine.
OF_OTHERS = {
    "No module named 'mmcv._ext'": "Python's; test_packaging.py provokes it",
    "No module named 'pkg_resources'": "Python's",
    "module 'pkgutil' has no attribute 'ImpImporter'": "setuptools 60's",
    'Building wheels for collected packages: mmcv': "pip's",
    'subprocess-exited-with-error': "pip's",
    'undefined symbol: ': "the loader's",
    'libGL.so.1: cannot open shared object file': "the loader's",
    'no kernel image is available': "CUDA's",
    'ms_deformable_im2col_cuda: invalid device function': "the official code's",
    'Unsupported gpu architecture': "nvcc's",
    'Not implemented on the CPU': "the official code's",
    'implementation for device cpu not found': "mmcv's compiled operators'",
    '"ms_deform_attn_forward_cuda" not implemented for': "PyTorch's, for the official code's op",
    'expected scalar type Float but found Half': "PyTorch's, for other code's ops",
    'must divide im2col_step': "the official code's and mmcv's",
    'Watchdog caught collective operation timeout': "NCCL's, with a GPU",
    'CUDA out of memory. Tried to allocate': "PyTorch's, with a GPU",
    'torch._dynamo.exc.Unsupported': "Dynamo's class",
    'DETR-like models do not support multi-batch inference': "mmdeploy's",
}


def test_parts_of_the_page():
    assert len(ENTRIES) >= 35 and len(MESSAGES) >= 35


@pytest.mark.parametrize('title', ENTRIES)
def test_entry(title):
    """A remedy, then a cause; or a link to the page that has them."""
    text = ENTRIES[title]
    assert ('**Do.**' in text) == ('**Why.**' in text)
    assert text.find('**Do.**') <= text.find('**Why.**')
    assert '**Do.**' in text or re.search(r'\]\(\w+\.md(#[\w-]+)?\)', text)


def _source(name):
    package, _, rest = name.partition('/')
    path = Path(find_spec(package).origin).parent / rest
    return path if path.exists() else ROOT / name


@pytest.mark.parametrize('part', WRITTEN_IN)
def test_message_is_real(part):
    """The page's words stand in the program that says them."""
    assert any(part.strip() in line for _, line in MESSAGES), 'the page does not have it'
    assert part.encode() in _source(WRITTEN_IN[part]).read_bytes()


def test_every_message_is_known():
    parts = [*WRITTEN_IN, *OF_OTHERS, *PROVOKED]
    assert [line for _, line in MESSAGES if not any(part.strip() in line for part in parts)] == []
    assert [part for part in [*OF_OTHERS, *PROVOKED] if not any(part in line for _, line in MESSAGES)] == []


PROVOKED = {
    'matrix contains invalid numeric entries': lambda: linear_sum_assignment([[float('nan')]]),
    'cost matrix is infeasible': lambda: linear_sum_assignment([[float('inf')]]),
    'DeformableDETR is not in the mmengine::model registry': lambda: MODELS.build(dict(type='DeformableDETR')),
    'mmdet_ddetr.DeformableDTR is not in the mmengine::model registry': lambda: MODELS.build(
        dict(type='mmdet_ddetr.DeformableDTR')
    ),
    'copying a param with shape torch.Size([91, 256])': lambda: torch.nn.Linear(256, 80).load_state_dict(
        torch.nn.Linear(256, 91).state_dict()
    ),
}


@pytest.mark.parametrize('message', PROVOKED)
def test_provoked(message, monkeypatch):
    monkeypatch.setattr(DefaultScope, '_instance_dict', {})  # no other test's scope
    with pytest.raises((ValueError, KeyError, RuntimeError), match=re.escape(message)):
        PROVOKED[message]()


def test_base_of_this_package_without_the_import(tmp_path, monkeypatch):
    from mmengine.config.utils import MODULE2PACKAGE

    monkeypatch.delitem(MODULE2PACKAGE, 'mmdet_ddetr')
    (tmp_path / 'mine.py').write_text("_base_ = 'mmdet_ddetr::quickstart/deformable-detr_lite0_shapes.py'")
    with pytest.raises(AssertionError, match='mmengine does not support to load mmdet_ddetr config.'):
        Config.fromfile(tmp_path / 'mine.py')
