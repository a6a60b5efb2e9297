"""Random arguments of the attention ops and what their reference makes of them in fp64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdet_ddetr import ops
from mmdet_ddetr.ops import reference

MAPS = ((6, 4), (3, 2), (1, 1))
KINDS = ('locations', 'points', 'boxes')  # ms_deform_attn; ms_deform_attn_fused with references of 2 and 4 numbers


@dataclass
class Case:
    """Arguments of an op; values, locations, weights and gradients are O(1), a part of the locations lies outside."""

    kind: str = 'locations'
    B: int = 2
    Q: int = 5
    M: int = 3
    D: int = 8
    K: int = 2
    shapes: Sequence[tuple[int, int]] = MAPS
    dtype: torch.dtype = torch.float32
    points_dtype: torch.dtype | None = None  # value's compute dtype by default
    device: str = 'cpu'
    seed: int = 0
    tensors: list[Tensor] = field(init=False)  # value, then what fixes the points
    grad_output: Tensor = field(init=False)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)
        B, Q, M, D, K, L, S = self.B, self.Q, self.M, self.D, self.K, len(self.shapes), self.S
        compute = torch.promote_types(self.dtype, torch.float32)
        narrow = self.points_dtype or compute

        def normal(*size, dtype):
            return torch.randn(*size, generator=generator, dtype=torch.float64).to(self.device, dtype)

        def uniform(*size, dtype):
            return torch.rand(*size, generator=generator, dtype=torch.float64).to(self.device, dtype)

        value = normal(B, S, M, D, dtype=self.dtype)
        self.grad_output = normal(B, Q, M * D, dtype=self.dtype)
        if self.kind == 'locations':
            points = (uniform(B, Q, M, L, K, 2, dtype=narrow) * 1.4 - 0.2, normal(B, Q, M, L, K, dtype=narrow))
        else:
            references = uniform(B, Q, L, 2 if self.kind == 'points' else 4, dtype=compute)
            points = (references, normal(B, Q, M, L, K, 2, dtype=narrow), normal(B, Q, M, L * K, dtype=narrow))
        self.tensors = [value, *points]

    @property
    def S(self) -> int:
        return sum(H * W for H, W in self.shapes)

    @property
    def flat_shapes(self) -> list[int]:
        return [size for shape in self.shapes for size in shape]

    @property
    def name(self) -> str:
        return 'ms_deform_attn' if self.kind == 'locations' else 'ms_deform_attn_fused'

    def call(self, *tensors: Tensor) -> Tensor:
        """The public function."""
        return getattr(ops, self.name)(tensors[0], self.shapes, *tensors[1:])

    def reference(self, *tensors: Tensor) -> Tensor:
        return getattr(reference, self.name)(tensors[0], self.shapes, *tensors[1:])

    def reference_by_gather(self, *tensors: Tensor) -> Tensor:
        return getattr(reference, f'{self.name}_by_gather')(tensors[0], self.shapes, *tensors[1:])

    def leaves(self) -> list[Tensor]:
        return [tensor.detach().clone().requires_grad_() for tensor in self.tensors]

    def forward_backward(self, function: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """Output and the gradients of all tensors, of the public function by default."""
        leaves = self.leaves()
        output = (function or self.call)(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, self.grad_output, materialize_grads=True)]

    def oracle(self) -> list[Tensor]:
        """Output and gradients of the reference in fp64, from the same rounded arguments."""
        exact = [tensor.detach().double().requires_grad_() for tensor in self.tensors]
        output = self.reference(*exact)
        grads = torch.autograd.grad(output, exact, self.grad_output.double(), materialize_grads=True)
        return [output.detach(), *grads]


def assert_near(got: Sequence[Tensor], expected: Sequence[Tensor]):
    """Output and gradients are as exact as their dtypes allow.

    They are sums in fp32 (fp64) of products of numbers of O(1), rounded once: the error of a number is at most half a
    unit in its last place, and a few units of fp32 (fp64) of the largest number of its tensor.
    """
    assert len(got) == len(expected)
    for tensor, exact in zip(got, expected):
        assert tensor.shape == exact.shape
        compute = torch.promote_types(tensor.dtype, torch.float32)
        scale = exact.abs().max().item() if exact.numel() else 0
        atol = (1e-13 if compute == torch.float64 else 1e-5) * max(scale, 1)
        rtol = 0 if tensor.dtype == compute else torch.finfo(tensor.dtype).eps / 2
        torch.testing.assert_close(tensor.double(), exact.double(), rtol=rtol, atol=atol)
