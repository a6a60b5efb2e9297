"""Devices that the tests of the ops run on."""

import pytest
import torch

from mmdet_ddetr.ops import has_compiled_kernel


def _has_cuda_kernels() -> bool:
    return torch.cuda.is_available() and has_compiled_kernel('ms_deform_attn', 'cuda')


def pytest_collection_modifyitems(items):
    """Mark what only a GPU can run, so that `-m gpu` leaves out all that has run elsewhere."""
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, 'callspec') else ()
        if 'gpu' in item.fixturenames or any(isinstance(p, str) and p == 'cuda' for p in parameters):
            item.add_marker('gpu')


@pytest.fixture(
    params=['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not _has_cuda_kernels(), reason='no GPU'))]
)
def device(request):
    """Every device that has compiled kernels."""
    return request.param


@pytest.fixture
def reproducible():
    """For tests that compare bit by bit: on CUDA, the order of the additions is otherwise another one every time."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=['cpu', 'meta'])
def call(request):
    """Calls an op with its arguments by name, the tensors on a device: of shapes alone, errors are the same."""

    def call_there(op, arguments):
        return op(*(v.to(request.param) if isinstance(v, torch.Tensor) else v for v in arguments.values()))

    return call_there
