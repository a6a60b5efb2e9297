import pytest
import torch

from mmdet_ddetr.ops import has_compiled_kernel


def _has_cuda_kernels() -> bool:
    return torch.cuda.is_available() and has_compiled_kernel('ms_deform_attn', 'cuda')


@pytest.fixture(
    params=['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not _has_cuda_kernels(), reason='no GPU'))]
)
def device(request):
    """Every device that has compiled kernels."""
    return request.param
