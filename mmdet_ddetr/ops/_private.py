"""The names with an underscore that are taken from PyTorch: all of them, because no public one does the same.

``torch.library`` offers shape functions, vmap, kernels for a dispatch key and a first derivative. It does not tell a
device's own kernel from one that serves every device, and does not offer derivatives in forward mode and of any order
for an op with a compiled backward. For these the op's own kernel at the Autograd key has to know which kind of
differentiation is under way, and to call the kernel below itself.
``tests/ops/test_private.py`` says of each name what it is for.
"""

import torch
from torch.autograd import forward_ad


def below_autograd():
    """A context in which an op calls its kernel for the device, not its kernel at the Autograd key again."""
    return torch._C._AutoDispatchBelowAutograd()


def beyond_first_order() -> bool:
    """True under forward-mode differentiation and torch.func, which an autograd.Function would answer with zeros."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def has_own_kernel(op: str, key: str) -> bool:
    """Whether a kernel was registered for this dispatch key; torch.library.get_kernel finds fallbacks, too."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(op, key)
    except RuntimeError:  # no such key
        return False
