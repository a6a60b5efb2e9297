"""Deformable convolution: time and memory of the op beside other ways to compute it, on the CPU.

    python benchmarks/deform_conv.py        # fp32; ten minutes on two cores
    python benchmarks/deform_conv.py --peer torchvision=build/torchvision.so mmcv=build/mmcv.so --batch 2

Peers: the convolution through ms_deform_attn (a query for each tap, the samples kept for the backward pass), and im2col
with one matrix product, both written here in PyTorch; conv2d of the same sizes, which samples nothing, as a measure.
torchvision's and mmcv's compiled kernels run beside them where they are installed, or where --peer names a library with
their operators: what torch.utils.cpp_extension.load makes of torchvision/csrc/ops/{deform_conv2d,autograd/...,cpu/...}
and of mmcv/ops/csrc/pytorch/{modulated_deform_conv,cpu/...}. The layers are those of an 800 x 1333 image: the 3 x 3
convolutions of R50 and of ResNeXt-101 64x4d in stages 3 to 5. Peers take turns; a figure is the minimum and (median) of
several runs.
"""

import argparse
import importlib.util
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _measure import machine, milliseconds, peak_memory, table, times

from mmdet_ddetr import ops

PASSES = {'forward': False, 'forward + backward': True}


@dataclass(frozen=True)
class Layer:
    name: str
    C: int
    groups: int
    size: tuple[int, int]


LAYERS = (
    Layer('R50, stage 3', 128, 1, (100, 167)),
    Layer('R50, stage 4', 256, 1, (50, 84)),
    Layer('R50, stage 5', 512, 1, (25, 42)),
    Layer('ResNeXt-101, stage 3', 512, 64, (100, 167)),
    Layer('ResNeXt-101, stage 4', 1024, 64, (50, 84)),
    Layer('ResNeXt-101, stage 5', 2048, 64, (25, 42)),
)


def inputs(layer: Layer, B: int) -> list[torch.Tensor]:
    """input, offset (a cell or so), mask and weight of DCNv2."""
    rng = torch.Generator().manual_seed(0)
    return [
        torch.randn(B, layer.C, *layer.size, generator=rng),
        torch.randn(B, 18, *layer.size, generator=rng),
        torch.rand(B, 9, *layer.size, generator=rng),
        torch.randn(layer.C, layer.C // layer.groups, 3, 3, generator=rng) / layer.C**0.5,
    ]


def locations(input, offset):  # -> [B, Ho*Wo*T, 1, 1, 1, (x, y)], 1 = the map's far edge
    B, _, H, W = input.shape
    tap_y, tap_x = torch.meshgrid(torch.arange(3.0) - 1, torch.arange(3.0) - 1, indexing='ij')
    y, x = torch.meshgrid(torch.arange(float(H)), torch.arange(float(W)), indexing='ij')
    taps = torch.stack([x[..., None] + tap_x.flatten(), y[..., None] + tap_y.flatten()], -1)
    cells = taps + offset.view(B, 9, 2, H, W).permute(0, 3, 4, 1, 2).flip(-1)
    return ((cells + 0.5) / taps.new_tensor([W, H])).reshape(B, -1, 1, 1, 1, 2)


def by_attention(input, offset, mask, weight):
    B, C, H, W = input.shape
    weights = mask.permute(0, 2, 3, 1).reshape(B, -1, 1, 1, 1)
    value = input.flatten(2).transpose(1, 2).unsqueeze(2)
    columns = ops.ms_deform_attn(value, [(H, W)], locations(input, offset), weights)
    C_group = weight.shape[1]
    groups = C // C_group
    kernel = weight.reshape(groups, -1, C_group, 9)
    return torch.einsum('bntgc,goct->bgon', columns.view(B, H * W, 9, groups, C_group), kernel).reshape(B, -1, H, W)


def by_im2col(input, offset, mask, weight):
    B, C, H, W = input.shape
    grid = 2 * locations(input, offset).view(B, H * W, 9, 2) - 1
    columns = F.grid_sample(input, grid, align_corners=False)  # [B, C, H*W, T]
    columns = (columns * mask.flatten(2).mT.unsqueeze(1)).permute(0, 1, 3, 2)
    C_group = weight.shape[1]
    groups = C // C_group
    kernel = weight.reshape(groups, -1, C_group * 9)
    return (kernel @ columns.reshape(B, groups, C_group * 9, H * W)).view(B, -1, H, W)


def by_torchvision(library: str | None):
    if library:
        torch.ops.load_library(library)
    else:
        import torchvision  # noqa: F401

    def convolve(input, offset, mask, weight):
        bias = weight.new_zeros(len(weight))
        groups = input.shape[1] // weight.shape[1]
        return torch.ops.torchvision.deform_conv2d(input, weight, offset, mask, bias, 1, 1, 1, 1, 1, 1, groups, 1, True)

    return convolve


def by_mmcv(library: str | None):
    from mmcv.ops import modulated_deform_conv

    if library:
        spec = importlib.util.spec_from_file_location(Path(library).stem, library)
        modulated_deform_conv.ext_module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modulated_deform_conv.ext_module)
    elif modulated_deform_conv.ext_module.__file__.endswith('.py'):
        raise ImportError('mmcv is not compiled')
    return lambda input, offset, mask, weight: modulated_deform_conv.modulated_deform_conv2d(
        input, offset, mask, weight, None, 1, 1, 1, input.shape[1] // weight.shape[1], 1
    )


def plain(input, offset, mask, weight):
    return F.conv2d(input, weight, padding=1, groups=input.shape[1] // weight.shape[1])


PEERS = {  # function of the path of a library, which may be None
    'deform_conv2d': lambda _: lambda i, o, m, w: ops.deform_conv2d(i, o, w, padding=1, mask=m),
    'ms_deform_attn + product': lambda _: by_attention,
    'im2col + product': lambda _: by_im2col,
    'torchvision': by_torchvision,
    'mmcv': by_mmcv,
    'conv2d, nothing sampled': lambda _: plain,
}


def make_step(peer: str, library: str | None, layer: Layer, B: int, backward: bool):
    warnings.simplefilter('ignore')
    function, tensors = PEERS[peer](library), [tensor.requires_grad_(backward) for tensor in inputs(layer, B)]
    grad_output = torch.randn(B, layer.C, *layer.size)

    def step():
        output = function(*tensors)
        if not backward:
            return output
        return torch.autograd.grad(output, tensors, grad_output, allow_unused=True)

    return step


def available(peers: list[str], libraries: dict[str, str]) -> dict[str, str | None]:
    """The peers that run here, each with its library."""
    found = {}
    for peer in peers:
        try:
            PEERS[peer](libraries.get(peer))
            found[peer] = libraries.get(peer)
        except (ImportError, OSError) as error:
            print(f'{peer} is left out: {error}')
    return found


def peer_and_library(text: str) -> tuple[str, str]:
    peer, _, library = text.partition('=')
    if peer not in ('torchvision', 'mmcv') or not library:
        raise argparse.ArgumentTypeError(f'must be torchvision=FILE or mmcv=FILE, got {text}')
    return peer, str(Path(library).resolve())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=2, help='how long each peer runs, for each figure')
    parser.add_argument('--layers', nargs='+', default=[layer.name for layer in LAYERS])
    parser.add_argument('--batch', type=int, default=1, help='images')
    parser.add_argument('--peer', nargs='+', type=peer_and_library, default=[], help='peers that are not installed')
    parser.add_argument('--peers', nargs='+', choices=PEERS, default=list(PEERS))
    parser.add_argument('--no-memory', action='store_true', help='times only; memory takes a process a figure')
    parser.add_argument(
        '--processor-time', action='store_true', help='of one thread (OMP_NUM_THREADS=1) on a machine with other work'
    )
    args = parser.parse_args()
    clock = time.thread_time if args.processor_time else time.perf_counter
    print(machine('cpu'))
    peers = available(args.peers, dict(args.peer))
    for layer in (layer for layer in LAYERS if layer.name in args.layers):
        print(f'\n{layer.name}: {layer.C} channels, {layer.groups} groups, {layer.size[0]} x {layer.size[1]}\n')
        calls = {
            (peer, name): (peer, peers[peer], layer, args.batch, backward)
            for peer in peers
            for name, backward in PASSES.items()
        }
        measured = {
            name: times({peer: make_step(*calls[peer, name]) for peer in peers}, args.seconds, clock=clock)
            for name in PASSES
        }
        rows = [[peer, *(milliseconds(measured[name][peer]) for name in PASSES)] for peer in peers]
        header = ['', *(f'{name}, ms' for name in PASSES)]
        if not args.no_memory:
            header += [f'{name}, MB' for name in PASSES]
            for row in rows:
                row += [f'{peak_memory(make_step, *calls[row[0], name]):.0f}' for name in PASSES]
        print(table(header, rows), flush=True)


if __name__ == '__main__':
    main()
