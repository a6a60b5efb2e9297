"""What the processor can do."""

from functools import cache

import torch


@cache
def multiplies_bf16() -> bool:
    """Whether it has instructions for products of bf16 (AMX or AVX512_BF16), which are then the faster ones."""
    capabilities = getattr(torch.cpu, 'get_capabilities', dict)()  # PyTorch 2.12
    return any(capabilities.get(name, False) for name in ('amx_bf16', 'avx512_bf16'))
