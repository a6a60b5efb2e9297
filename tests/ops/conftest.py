import pytest
import torch


def _has_cuda_kernels() -> bool:
    return torch.cuda.is_available() and torch._C._dispatch_has_kernel_for_dispatch_key(
        'mmdet_ddetr::ms_deform_attn', 'CUDA'
    )


@pytest.fixture(
    params=['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not _has_cuda_kernels(), reason='no GPU'))]
)
def device(request):
    """Every device that has compiled kernels."""
    return request.param
