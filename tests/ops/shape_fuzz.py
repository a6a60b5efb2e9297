"""Deformable convolution and RoI pooling of random shapes against the reference in fp64, values and gradients:

    python shape_fuzz.py deform_conv2d FIRST LAST         # or deform_roi_pool, deform_ps_roi_pool

A number between them is the seed of a shape.
"""

import random
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from mmdet_ddetr import ops
from mmdet_ddetr.ops import reference


class Case:
    """Random numbers for one call.

    Attributes:
        on_knots: coordinates are numbers that are added without rounding, and lie where derivatives jump and maps
            end: all agree on the side. Otherwise none lies there.
    """

    def __init__(self, number: int):
        self.rng = random.Random(number)
        self.generator = torch.Generator().manual_seed(self.rng.randrange(2**31))
        self.on_knots = self.rng.random() < 0.3

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.double)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.double)

    def offset(self, *shape: int) -> Tensor:
        """Small, or far outside of any map."""
        offset = self.rng.choice((0.5, 3, 50)) * self.normal(*shape)
        return offset.round() + 0.0 if self.on_knots else offset

    def size(self) -> int:
        """By which coordinates are divided."""
        return self.rng.choice((1, 2, 4) if self.on_knots else (1, 2, 3, 5, 7))


Function = Callable[..., Tensor]  # of the tensors that have a gradient


def deform_conv2d(case: Case) -> tuple[Function, Function, list[Tensor], str] | None:
    """The op, its reference, the tensors for both and what else there is to say; None: no tensor has such a size."""
    rng = case.rng
    groups, G = rng.choice((1, 1, 2, 3, 5)), rng.choice((1, 1, 2, 3, 4))
    C, C_out = groups * G * rng.choice((1, 2, 5, 16)), groups * rng.choice((0, 1, 3, 8))
    kernel, *geometry = (
        tuple(rng.randint(low, high) for _ in range(2)) for low, high in ((1, 4), (1, 3), (0, 3), (1, 3))
    )
    size = [rng.choice((1, 2, 5, 9, 17)) for _ in range(2)]
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, *geometry)]
    if min(out) < 0:
        return None
    B, T = rng.choice((0, 1, 2)), kernel[0] * kernel[1]
    tensors = [
        case.normal(B, C, *size), case.offset(B, 2 * G * T, *out), case.normal(C_out, C // groups, *kernel)
    ]  # fmt: skip
    tensors += [case.normal(B, G * T, *out)] if rng.random() < 0.5 else []

    def call(function):
        return lambda input, offset, weight, mask=None: function(input, offset, weight, None, *geometry, mask)

    return call(ops.deform_conv2d), call(reference.deform_conv2d), tensors, f'stride, padding, dilation {geometry}'


def _rois(case: Case, B: int, size: tuple[int, int], stride: int) -> Tensor:
    """RoIs that may lie beside the map, have no area or their corners in the wrong order."""
    R = case.rng.choice((0, 1, 4)) if B else 0
    corners = (2 * case.uniform(R, 2, 2) - 0.5) * stride * torch.tensor(size[::-1]).double()
    if case.on_knots:
        corners = corners.round().sort(1).values
    elif case.rng.random() < 0.7:
        corners = corners.sort(1).values
    if R and case.rng.random() < 0.2:
        corners[0, 1] = corners[0, 0]
    return torch.cat((torch.arange(R).double()[:, None] % max(B, 1), corners.flatten(1)), 1)


def deform_roi_pool(case: Case) -> tuple[Function, Function, list[Tensor], str]:
    rng = case.rng
    B, C, size = rng.choice((0, 1, 2)), rng.choice((1, 2, 7, 16, 70)), [rng.choice((0, 1, 2, 5, 12)) for _ in range(2)]
    output_size, stride = (case.size(), case.size()), case.size()
    ratio = case.size() if case.on_knots or rng.random() < 0.5 else rng.choice((-1, 0))
    options = output_size, 1 / stride, ratio, 1.0 if case.on_knots else 0.1
    rois = _rois(case, B, size, stride)
    tensors = [case.normal(B, C, *size)]
    tensors += [case.offset(len(rois), 2, *output_size)] if rng.random() < 0.7 else []

    def call(function):
        return lambda input, offset=None: function(input, rois, offset, *options)

    return call(ops.deform_roi_pool), call(reference.deform_roi_pool), tensors, f'{rois=} {options=}'


def deform_ps_roi_pool(case: Case) -> tuple[Function, Function, list[Tensor], str]:
    """RoIs are rounded: without offsets, all coordinates lie on knots."""
    rng = case.rng
    B, K, D = rng.choice((0, 1, 2)), rng.choice((1, 2, 5)), rng.choice((1, 2, 5))
    size = [rng.choice((1, 2, 9)) for _ in range(2)]
    group_size, pooled_size, ratio, stride = rng.choice((1, 2, 3, 4)), case.size(), case.size(), case.size()
    part_size, trans_std = rng.choice((pooled_size, pooled_size, 1, 5)), 1.0 if case.on_knots else 0.1
    rois = _rois(case, B, size, stride)
    tensors = [case.normal(B, K * D * group_size**2, *size)]
    moved = not case.on_knots or rng.random() < 0.5
    tensors += [case.offset(len(rois), 2 * K, part_size, part_size)] if moved else []
    options = 1 / stride, K * D, group_size, pooled_size, part_size, ratio, trans_std

    def by_reference(input, offset=None):
        part = [p * part_size // pooled_size for p in range(pooled_size)]
        bins = None if offset is None else offset[:, :, part][..., part]
        output_size = pooled_size, pooled_size
        return reference.deform_roi_pool(input, rois, bins, output_size, 1 / stride, ratio, trans_std, group_size, True)

    def call(input, offset=None):
        return ops.deform_ps_roi_pool(input, rois, offset, *options)

    return call, by_reference, tensors, f'{rois=} {options=}'


def check_random_shape(op: str, number: int):
    """Values and gradients of one shape; raises AssertionError with it where they differ."""
    case = Case(number)
    made = globals()[op](case)
    if made is None:
        return
    ours, theirs, tensors, more = made

    def results(function):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        output = function(*leaves)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        grads = torch.autograd.grad(output, leaves, weights, allow_unused=True)
        return [output, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads))]

    for got, expected in zip(results(ours), results(theirs)):
        torch.testing.assert_close(got, expected, msg=lambda text: f'{[list(t.shape) for t in tensors]} {more}: {text}')


def main(op: str, first: str, last: str):
    for number in range(int(first), int(last)):
        try:
            check_random_shape(op, number)
        except AssertionError as error:
            raise SystemExit(f'{op}, number {number}: {error}') from None
    print(f'{op}: {int(last) - int(first)} shapes, 0 wrong')


if __name__ == '__main__':
    main(*sys.argv[1:])
