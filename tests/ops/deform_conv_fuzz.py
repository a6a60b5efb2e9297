"""Deformable convolution of random shapes against the reference in fp64: `python deform_conv_fuzz.py FIRST LAST`."""

import random
import sys

import torch

from mmdet_ddetr.ops import deform_conv2d, reference


def check_random_shape(rng: random.Random):
    """Values and gradients of one shape; raises AssertionError with it where they differ."""
    groups, G = rng.choice((1, 1, 2, 3, 5)), rng.choice((1, 1, 2, 3, 4))
    C, C_out = groups * G * rng.choice((1, 2, 5, 16)), groups * rng.choice((0, 1, 3, 8))
    kernel, stride, padding, dilation = (
        [rng.randint(low, high) for _ in range(2)] for low, high in ((1, 4), (1, 3), (0, 3), (1, 3))
    )
    size = [rng.choice((1, 2, 5, 9, 17)) for _ in range(2)]
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)]
    out = [max(n, 0) for n in out]
    B, T, spread = rng.choice((0, 1, 2)), kernel[0] * kernel[1], rng.choice((0, 0.5, 3, 50))
    random_numbers = torch.Generator().manual_seed(rng.randrange(2**31))

    def normal(*shape):
        return torch.randn(shape, generator=random_numbers, dtype=torch.double)

    offset = spread * normal(B, 2 * G * T, *out)
    if rng.random() < 0.2:
        offset = offset.round() + 0.0  # on knots
    tensors = [normal(B, C, *size), offset, normal(C_out, C // groups, *kernel)]
    tensors += [normal(B, G * T, *out)] if rng.random() < 0.5 else []
    shape = f'{[list(t.shape) for t in tensors]} stride {stride} padding {padding} dilation {dilation}'
    if any((n + 2 * p - d * (k - 1) - 1) // s < -1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)):
        return  # no tensor has such a size

    def results(function):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        mask = leaves[3] if len(leaves) == 4 else None
        output = function(*leaves[:3], None, tuple(stride), tuple(padding), tuple(dilation), mask)
        grads = torch.autograd.grad(output, leaves, normal(*output.shape) * 0 + 1, allow_unused=True)
        return [output, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads))]

    for got, expected in zip(results(deform_conv2d), results(reference.deform_conv2d)):
        torch.testing.assert_close(got, expected, msg=lambda text: f'{shape}: {text}')


def main(first: int, last: int):
    for number in range(first, last):
        try:
            check_random_shape(random.Random(number))
        except AssertionError as error:
            raise SystemExit(f'number {number}: {error}') from None
    print(f'{last - first} shapes, 0 wrong')


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
