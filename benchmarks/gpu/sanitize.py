"""A fixed, short list of calls of every CUDA op, to run under NVIDIA's compute-sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/gpu/sanitize.py

Odd sizes, so that groups, warps and blocks end in the middle of something; both modes of the gradient; all element
types; more levels than travel as an argument. Kernels are slowed down many times, so the sizes are small.
"""

from pathlib import Path

import torch

EXTENSION = Path(__file__).parents[2] / 'mmdet_ddetr/_C.abi3.so'  # alone: importing mmdet would be sanitized, too
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def attention(ops, dtype, M, D, shapes, Q=7, B=2, K=3):
    S, L = sum(H * W for H, W in shapes), len(shapes)
    flat = [side for shape in shapes for side in shape]
    points_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def random(*shape, dtype=points_dtype):
        return torch.rand(*shape, device=DEVICE, dtype=points_dtype).to(dtype)

    value, grad = random(B, S, M, D, dtype=dtype), random(B, Q, M * D, dtype=dtype)
    plain = random(B, Q, M, L, K, 2) * 1.4 - 0.2, random(B, Q, M, L, K)
    ops.ms_deform_attn(value, flat, *plain)
    for deterministic in (False, True):
        ops.ms_deform_attn_backward(grad, value, flat, *plain, deterministic)
    for R in (2, 4):
        fused = random(B, Q, L, R), random(B, Q, M, L, K, 2) * 8 - 4, random(B, Q, M, L * K) * 4
        ops.ms_deform_attn_fused(value, flat, *fused)
        ops.ms_deform_attn_fused_backward(grad, value, flat, *fused, True, R == 4)


def convolution(ops, dtype, C, groups, G):
    """Of 3 x 3 taps."""
    input, weight, grad = (
        torch.randn(*shape, device=DEVICE).to(dtype)
        for shape in ((2, C, 5, 7), (2 * groups, C // groups, 3, 3), (2, 2 * groups, 5, 7))
    )
    offset, mask = (2 * torch.randn(2, maps * G * 9, 5, 7, device=DEVICE) for maps in (2, 1))
    arguments = input, offset, weight, [1, 1], [1, 1], [1, 1], mask
    ops.deform_conv2d(*arguments)
    for deterministic in (False, True):
        ops.deform_conv2d_backward(grad, *arguments, True, True, deterministic)


def roi_pooling(ops, dtype, D, K, group_size):
    """The definition of the official code, and of mmcv where each channel has one map."""
    input = torch.randn(2, D * K * group_size**2, 9, 7, device=DEVICE).to(dtype)
    corners = torch.rand(5, 2, device=DEVICE) * 20
    rois = torch.cat((torch.arange(5, device=DEVICE)[:, None] % 2, corners, corners + 10), 1)
    offset, grad = torch.randn(5, 2 * K, 3, 3, device=DEVICE), torch.randn(5, D * K, 3, 3, device=DEVICE).to(dtype)
    rounded = group_size > 1
    arguments = input, rois, offset, [3, 3], 0.25, 2 if rounded else 0, 0.3, group_size, rounded
    ops.deform_roi_pool(*arguments)
    for deterministic in (False, True):
        ops.deform_roi_pool_backward(grad, *arguments, True, True, deterministic)


def main():
    torch.ops.load_library(EXTENSION)
    ops = torch.ops.mmdet_ddetr
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        attention(ops, dtype, M=3, D=32, shapes=[(6, 4), (3, 2), (1, 1)])
        attention(ops, dtype, M=1, D=5, shapes=[(5, 7)])
    attention(ops, torch.float32, M=8, D=32, shapes=[(2, 3)] * 20, Q=33)
    for dtype in (torch.float32, torch.bfloat16):
        convolution(ops, dtype, C=16, groups=1, G=2)
        convolution(ops, dtype, C=10, groups=5, G=1)
        roi_pooling(ops, dtype, D=40, K=1, group_size=1)
        roi_pooling(ops, dtype, D=1, K=3, group_size=3)
        logits = torch.randn(37, 13, device=DEVICE).to(dtype)
        labels = torch.randint(0, 14, (37,), device=DEVICE)
        for sum_classes in (False, True):
            loss = ops.sigmoid_focal_loss(logits, labels, 0.25, 2.0, sum_classes)
            ops.sigmoid_focal_loss_backward(torch.ones_like(loss), logits, labels, 0.25, 1.5)
    scores, boxes, targets = (torch.rand(*shape, device=DEVICE) for shape in ((2, 2, 19, 5), (2, 2, 19, 4), (7, 4)))
    image, labels = torch.tensor([0, 0, 0, 1, 1, 1, 1], device=DEVICE), torch.arange(7, device=DEVICE) % 5
    for focal in (True, False):
        ops.matching_cost(scores, boxes, image, labels, targets, 2.0, 5.0, 2.0, 0.25, 2.0, focal)
    if DEVICE == 'cuda':
        torch.cuda.synchronize()
    print('all calls returned')


if __name__ == '__main__':
    main()
