"""Multi-scale deformable attention: time and memory of this package's ops beside its peers'.

    python benchmarks/ms_deform_attn.py                  # CPU: fp32, fp16, bf16; half an hour on two cores
    python benchmarks/ms_deform_attn.py --device cuda

Peers: mmcv's path without a GPU (grid_sample; detrex and Hugging Face have the same one), mmcv's CUDA kernel where mmcv
is compiled or gpu/peers.py has built that kernel alone, torch-ms-deform-attn and deformops where they are installed.
The shapes are those of an 800 x 1333 image: the encoder asks at each of 22223 cells, the decoder 300 times. Peers take
turns; a figure is the minimum and (median) of several runs.
"""

import argparse
import json
import warnings
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from _measure import machine, milliseconds, peak_memory, table, times

MAPS = ((100, 167), (50, 84), (25, 42), (13, 21))
S, M, D, L, K = sum(H * W for H, W in MAPS), 8, 32, len(MAPS), 4
GRID_SAMPLE, TORCH_MSDA, MMCV_CUDA = 'mmcv, grid_sample', 'torch-ms-deform-attn', 'mmcv, CUDA'
DEFORMOPS = {'deformops, Triton': 'TRITON', 'deformops, CUDA': 'CUDA'}  # name of its backend
PASSES = {'forward': False, 'forward + backward': True}  # with backward?
OURS, FUSED, UNFUSED = 'ms_deform_attn', 'ms_deform_attn_fused', 'softmax + locations + ms_deform_attn'


@dataclass(frozen=True)
class Case:
    part: str  # encoder, decoder
    B: int
    dtype: str  # of value; positions and weights are fp32 where the peer allows it
    device: str
    spread: str = 'clustered'  # locations: a few cells around the reference points, or 'uniform' over the maps

    @property
    def name(self) -> str:
        return f'{self.part}, B={self.B}, {self.dtype}' + (', uniform' if self.spread == 'uniform' else '')


def inputs(case: Case) -> dict[str, torch.Tensor]:
    """Reference points at the cells (encoder) or anywhere (decoder); offsets of a few cells around them."""
    generator = torch.Generator().manual_seed(0)
    if case.part == 'encoder':
        grids = [
            torch.stack(torch.meshgrid((torch.arange(W) + 0.5) / W, (torch.arange(H) + 0.5) / H, indexing='xy'), -1)
            for H, W in MAPS
        ]
        reference = torch.cat([grid.flatten(0, 1) for grid in grids]).expand(case.B, S, 2)
    else:
        reference = torch.rand(case.B, 300, 2, generator=generator)
    Q = reference.shape[1]
    offsets = torch.randn(case.B, Q, M, L, K, 2, generator=generator) * 2  # in cells
    if case.spread == 'uniform':
        anywhere = torch.rand(offsets.shape, generator=generator) - reference[:, :, None, None, None]
        offsets = anywhere * torch.tensor([(W, H) for H, W in MAPS])[:, None]
    tensors = dict(
        value=torch.randn(case.B, S, M, D, generator=generator).to(getattr(torch, case.dtype)),
        reference=reference[:, :, None].expand(-1, -1, L, -1).contiguous(),
        offsets=offsets,
        logits=torch.randn(case.B, Q, M, L * K, generator=generator),
        grad_output=torch.randn(case.B, Q, M * D, generator=generator).to(getattr(torch, case.dtype)),
    )
    return {name: tensor.to(case.device) for name, tensor in tensors.items()}


def points(reference, offsets, logits):
    """Sampling locations and attention weights, as the layer computes them without a fused op."""
    sizes = offsets.new_tensor([(W, H) for H, W in MAPS])[:, None]
    locations = reference[:, :, None, :, None] + offsets / sizes
    return locations, logits.softmax(-1).unflatten(-1, (L, K))


@cache
def levels(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes and start of each level as tensors, which peers want."""
    shapes = torch.tensor(MAPS, device=device)
    return shapes, torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])


def function(peer: str):
    """The peer as a function of (value, locations, weights), or of (value, reference, offsets, logits) for FUSED.

    Raises:
        ImportError: the peer is not here.
    """
    if peer == GRID_SAMPLE:
        from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

        return lambda value, locations, weights: multi_scale_deformable_attn_pytorch(
            value, levels(value.device)[0], locations.to(value.dtype), weights.to(value.dtype)
        )
    if peer == MMCV_CUDA:
        from mmcv.ops import multi_scale_deform_attn as module

        module.ext_module = mmcv_kernels()
        call = module.MultiScaleDeformableAttnFunction.apply  # narrows locations and weights itself
        return lambda value, locations, weights: call(value, *levels(value.device), locations, weights, 64)
    if peer == TORCH_MSDA:
        from torch_ms_deform_attn import ms_deform_attn as torch_msda

        return lambda value, locations, weights: torch_msda(
            value, *levels(value.device), locations.to(value.dtype), weights.to(value.dtype)
        )
    if peer in DEFORMOPS:
        from deformops.registry import Backend, msda

        backend = getattr(Backend, DEFORMOPS[peer])
        return lambda value, locations, weights: msda(
            value, *levels(value.device), locations, weights.to(value.dtype), backend=backend
        )
    from mmdet_ddetr import ops

    if peer == OURS:
        return lambda value, *rest: ops.ms_deform_attn(value, MAPS, *rest)
    if peer == FUSED:
        return lambda value, *rest: ops.ms_deform_attn_fused(value, MAPS, *rest)
    return lambda value, *rest: ops.ms_deform_attn(value, MAPS, *points(*rest))


def mmcv_kernels():
    """The compiled module of mmcv, or what gpu/peers.py has built of it."""
    import mmcv._ext

    if Path(mmcv._ext.__file__).suffix != '.py':  # else it is what mmdet_ddetr puts in its place
        return mmcv._ext
    import mmdet_ddetr_peer_mmcv

    return mmdet_ddetr_peer_mmcv


def step(peer: str, case: Case, backward: bool):
    """What is timed: a forward without a graph, or forward and backward."""
    import mmdet_ddetr  # noqa: F401  (mmcv's path needs it where mmcv is not compiled)

    call, tensors = function(peer), inputs(case)
    rest = [tensors[name] for name in ('reference', 'offsets', 'logits')]
    if peer not in (FUSED, UNFUSED):
        rest = points(*rest)
    leaves = [tensors['value'], *rest]
    if peer in (FUSED, UNFUSED):  # reference points are constants in an encoder
        trained = [leaves[0], *leaves[2:]]
    else:
        trained = leaves
    if not backward:
        return torch.no_grad()(lambda: call(*leaves))
    for leaf in trained:
        leaf.requires_grad_()
    return lambda: torch.autograd.grad(call(*leaves), trained, tensors['grad_output'])


def available(device: str) -> list[str]:
    peers = [GRID_SAMPLE]
    for peer in [TORCH_MSDA, *([MMCV_CUDA, *DEFORMOPS] if device == 'cuda' else [])]:
        try:
            function(peer)
            peers.append(peer)
        except Exception as error:  # noqa: BLE001  another project's import fails in its own way
            print(f'{peer} is left out: {type(error).__name__}: {error}')
    return [*peers, OURS, UNFUSED, FUSED]


def measure(case: Case, peers: list[str], seconds: float) -> dict[str, dict]:
    """Times and memory by peer; a peer that crashes in this case is left out."""
    result = {}
    for peer in peers:
        try:
            result[peer] = {
                f'{what}, MB': peak_memory(step, peer, case, backward, device=case.device)
                for what, backward in PASSES.items()
            }
        except BrokenProcessPool:
            print(f'{peer} crashes: left out of {case.name}')
    for what, backward in PASSES.items():
        steps = {peer: step(peer, case, backward) for peer in result}
        for peer, samples in times(steps, seconds, case.device).items():
            result[peer][what] = samples
    return result


def report(results: dict[str, dict], device: str) -> str:
    """A table for each case; ratios are of minima, to this package's ms_deform_attn."""
    lines = [machine(device), '']
    for name, peers in results.items():
        rows = []
        for peer, figures in peers.items():
            row = [peer]
            for what in PASSES:
                ratio = min(figures[what]) / min(peers[OURS][what])
                row += [milliseconds(figures[what]), f'{ratio:.2f}', f'{figures[f"{what}, MB"]:.0f}']
            rows.append(row)
        header = [name, 'forward, ms', 'x', 'MB', 'forward + backward, ms', 'x', 'MB']
        lines += [table(header, rows), '']
    return '\n'.join(lines)


def plot(results: dict[str, dict], path: Path, title: str):
    """Times of all peers, a panel for each case's forward and forward + backward."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    names = [name for name in results if 'B=1' in name]
    figure, panels = plt.subplots(len(names), 2, figsize=(10, 1.5 * len(names)), squeeze=False, layout='constrained')
    for row, name in zip(panels, names):
        for panel, what in zip(row, PASSES):
            peers = list(results[name])[::-1]
            values = [min(results[name][peer][what]) * 1e3 for peer in peers]
            colors = ['tab:orange' if peer in (OURS, FUSED) else 'tab:gray' for peer in peers]
            bars = panel.barh(peers, values, color=colors)
            panel.bar_label(bars, [f'{value:.3g}' for value in values], padding=3, fontsize=8)
            panel.set_xlim(0, max(values) * 1.15)
            panel.set_title(f'{name}: {what}, ms', fontsize=9)
            panel.tick_params(labelsize=8)
        row[1].set_yticklabels([])
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--dtypes', nargs='+', default=['float32', 'float16', 'bfloat16'])
    parser.add_argument('--parts', nargs='+', default=['encoder', 'decoder'])
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[1, 2])
    parser.add_argument('--seconds', type=float, default=2, help='of each peer in each case (default: %(default)s)')
    parser.add_argument('--threads', type=int, help='CPU threads (default: as PyTorch chooses)')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmarks'),
        help='for .md, .json and .png; other cases that the .json already holds are kept (default: %(default)s)',
    )
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    if args.threads:
        torch.set_num_threads(args.threads)
    import mmdet_ddetr  # noqa: F401

    args.out.mkdir(parents=True, exist_ok=True)
    peers = available(args.device)
    stem = args.out / f'ms_deform_attn_{args.device}'
    saved = stem.with_suffix('.json')
    results = json.loads(saved.read_text()) if saved.exists() else {}
    for part in args.parts:
        for B in args.batch_sizes:
            for dtype in args.dtypes:
                case = Case(part, B, dtype, args.device)
                results[case.name] = measure(case, peers, args.seconds)
                print(report({case.name: results[case.name]}, args.device), flush=True)
                saved.write_text(json.dumps(results))
    stem.with_suffix('.md').write_text(report(results, args.device))
    plot(results, stem.with_suffix('.png'), machine(args.device))
    print(f'written: {stem}.md, .json, .png')


if __name__ == '__main__':
    main()
