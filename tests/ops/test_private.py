"""What is taken from PyTorch under a name with an underscore: in one file, and each of it does what it is there for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_cases import Case
from torch.autograd import forward_ad

import mmdet_ddetr
from mmdet_ddetr.ops import _private, has_compiled_kernel

PACKAGE = Path(mmdet_ddetr.__file__).parent


def test_one_file_holds_them_all():
    pattern = re.compile(r'torch\._C\b|torch\._[a-z]+\.|forward_ad\._|_dispatch_')
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in (PACKAGE / 'ops').rglob('*.py')
        if any(pattern.search(line.partition('#')[0]) for line in path.read_text().splitlines())
    }
    assert found == {'ops/_private.py'}


def test_below_autograd():
    """Without it, an op's kernel at the Autograd key would call itself without end: training would not work at all."""
    seen = []
    with torch.library._scoped_library('mmdet_ddetr_test', 'FRAGMENT') as library:
        library.define('twice(Tensor x) -> Tensor')
        library.impl('twice', lambda x: seen.append('kernel') or 2 * x, 'CPU')

        def autograd(x):
            seen.append('autograd')
            with _private.below_autograd():
                return torch.ops.mmdet_ddetr_test.twice(x)

        library.impl('twice', autograd, 'Autograd')
        assert torch.ops.mmdet_ddetr_test.twice(torch.ones(1, requires_grad=True)).item() == 2
    assert seen == ['autograd', 'kernel']


def test_beyond_first_order():
    """Without it, forward-mode derivatives and those of torch.func would be zero or an error."""
    assert not _private.beyond_first_order()
    with forward_ad.dual_level():
        assert _private.beyond_first_order()
    answers = []
    for transform in (torch.func.grad, torch.func.vmap, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))):
        transform(lambda x: answers.append(_private.beyond_first_order()) or x.sum())(torch.ones(2))
    assert answers == [True] * 3
    assert not _private.beyond_first_order()


ON_CUDA = [
    *('ms_deform_attn', 'ms_deform_attn_fused', 'deform_conv2d', 'deform_roi_pool'),
    *('sigmoid_focal_loss', 'matching_cost'),
]
OPS = [*ON_CUDA, 'nms_keep', 'dropout', 'depthwise_conv2d', 'depthwise_conv2d_clamped', 'packed_linear']


@pytest.mark.parametrize('name', OPS)
def test_compiled_kernels_are_told_from_plain_pytorch(name):
    """torch.library.get_kernel, which is public, also finds the op in plain PyTorch, which serves every device."""
    assert has_compiled_kernel(name, 'cpu') == mmdet_ddetr.ops._load.EXTENSION_LOADED
    assert not any(has_compiled_kernel(name, device) for device in ('mps', 'xpu', 'meta', 'privateuseone'))
    with_cuda = has_compiled_kernel(ON_CUDA[0], 'cuda')  # they may be there under a PyTorch for the CPU, too
    assert has_compiled_kernel(name, 'cuda') == (with_cuda and name in ON_CUDA)


def test_the_import_takes_no_sympy():
    """It takes 0.3 s; only symbols of torch.compile and torch.export need it."""
    code = 'import sys, mmdet_ddetr.ops; assert "sympy" not in sys.modules'
    environment = {**os.environ, 'PYTHONPATH': str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('kind', ['locations', 'points'])
def test_autocast_ends_at_the_op(kind):
    """The op's rule, value narrow and points exact, is not asked again inside of the op."""
    case = Case(kind)
    with torch.autocast('cpu', torch.bfloat16):
        output = case.call(*case.tensors)
        assert torch.is_autocast_enabled('cpu') and torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, case.call(case.tensors[0].bfloat16(), *case.tensors[1:]))
