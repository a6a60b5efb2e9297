"""Try the constants of csrc/cuda/tuning.h on this GPU: build the attention kernels for each, time them, name the best.

    python benchmarks/gpu/variants.py --out variants.json

A variant is ms_deform_attn.cu alone, for one element type, as a library of ops of its own. Without a GPU they are only
built (for sm_90, or --arch).
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import ms_deform_attn as attention
from _measure import machine
from timing import device, device_times, on_gpu, summary

CSRC = Path(__file__).parents[2] / 'csrc'
VARIANTS = {  # what differs from the defaults of tuning.h
    'default': {},
    'together 1': dict(TOGETHER=1),
    'together 4': dict(TOGETHER=4, BLOCKS=4),
    'blocks 6': dict(BLOCKS=6),
    'blocks 8': dict(BLOCKS=8, TOGETHER=1),
    'threads 256': dict(THREADS=256, BLOCKS=4),
    'threads 256, blocks 6': dict(THREADS=256, BLOCKS=6),
    'threads 256, blocks 8': dict(THREADS=256, BLOCKS=8, TOGETHER=1),
    'threads 384': dict(THREADS=384, BLOCKS=6),
    'scalar atomics': dict(VECTOR_ATOMICS=0),
    'narrow sums': dict(NARROW_SUMS=1),  # to know the price of exact ones
}
DTYPES = dict(float32='float', bfloat16='c10::BFloat16')
NARROW = 'narrow sums'
inputs = cache(attention.inputs)  # once for all variants: an encoder's take the CPU a second


def jobs() -> list[tuple[str, str]]:
    return [(name, dtype) for name in VARIANTS for dtype in DTYPES if name != NARROW or dtype != 'float32']


def namespace(name: str, dtype: str) -> str:
    return re.sub(r'\W+', '_', f'mmdet_ddetr {name} {dtype}')


def build(name: str, dtype: str, architecture: str, folder: Path) -> str:
    """Compile a variant to ``<folder>/<namespace>.so``; the compiler's errors, or nothing."""
    torch_folder = Path(importlib.util.find_spec('torch').origin).parent
    space = namespace(name, dtype)
    command = [shutil.which('nvcc') or 'nvcc', '-shared', '-std=c++17', '-O3', f'-arch=sm_{architecture}', '-DUSE_CUDA']
    command += ['-DTORCH_TARGET_VERSION=0x020a000000000000', f'-I{torch_folder / "include"}', '-Xcompiler=-fPIC']
    command += [f'-Dmmdet_ddetr={space}', f'-DMMDET_DDETR_DTYPE={DTYPES[dtype]}']
    command += [f'-DMMDET_DDETR_{key}={value}' for key, value in VARIANTS[name].items()]
    command += [str(CSRC / 'cuda/ms_deform_attn.cu'), str(CSRC / 'library.cpp'), '-Xlinker=--no-as-needed']
    command += [f'-L{torch_folder / "lib"}', '-ltorch', '-ltorch_cpu', '-o', str(folder / f'{space}.so')]
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr)[-500:] if done.returncode else ''


def measure(ops, case: attention.Case, expected: list | None) -> tuple[dict, list]:
    """Times of the op's forward and backward, and what they gave; its error against ``expected``."""
    tensors = inputs(case)
    points = attention.points(*(tensors[name] for name in ('reference', 'offsets', 'logits')))
    shapes = [side for shape in attention.MAPS for side in shape]
    arguments = (tensors['value'], shapes, *points)
    steps = {
        'forward': lambda: ops.ms_deform_attn(*arguments),
        'backward': lambda: ops.ms_deform_attn_backward(tensors['grad_output'], *arguments, False),
    }
    got = [steps['forward'](), *steps['backward']()]
    figures = {what: summary(device_times(step, cold=case.part == 'encoder')) for what, step in steps.items()}
    if expected is not None:
        figures['error'] = max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(got, expected))
    return figures, got


def best(results: dict[str, dict]) -> dict[str, str]:
    """The fastest exact variant of each case and pass, and how it compares with the default."""
    chosen = {}
    for case in {case for figures in results.values() for case in figures}:
        for what in ('forward', 'backward'):
            times = {
                name: figures[case][what]['us']
                for name, figures in results.items()
                if what in figures.get(case, {}) and name != NARROW
            }
            if 'default' in times:
                name = min(times, key=times.get)
                chosen[f'{case}, {what}'] = f'{name}: {times["default"] / times[name]:.2f} times the default'
    return dict(sorted(chosen.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='JSON file')
    parser.add_argument('--arch', help='compute capability to build for (default: the GPU, else 90)')
    parser.add_argument('--only', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    present = ''.join(map(str, torch.cuda.get_device_capability())) if on_gpu() else '90'
    folder = args.out.parent / 'variants'
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [job for job in jobs() if job[0] in args.only]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(lambda job: '' if args.built else build(*job, args.arch or present, folder), wanted))
    result = dict(machine=machine(device()), built=[], failed={}, times={})
    for (name, dtype), problem in zip(wanted, problems):
        if problem:
            result['failed'][f'{name}, {dtype}'] = problem
        else:
            result['built'].append(f'{name}, {dtype}')
            torch.ops.load_library(folder / f'{namespace(name, dtype)}.so')
    expected = {}
    for name, dtype in [job for job, problem in zip(wanted, problems) if not problem and on_gpu()]:
        for part, B in (('encoder', 1), ('encoder', 2), ('decoder', 4)):
            case = attention.Case(part, B, dtype, 'cuda')
            try:
                figures, got = measure(getattr(torch.ops, namespace(name, dtype)), case, expected.get(case.name))
            except RuntimeError as error:  # say, more registers than a block may have
                result['failed'][f'{name}, {case.name}'] = str(error)[:500]
                continue
            expected.setdefault(case.name, got)
            result['times'].setdefault(name, {})[case.name] = figures
        args.out.write_text(json.dumps(result, indent=1))
    result['best'] = best(result['times'])
    args.out.write_text(json.dumps(result, indent=1))
    print(
        f'{len(result["built"])} built, {len(result["failed"])} failed', json.dumps(result['best'], indent=1), sep='\n'
    )
    sys.exit(bool(result['failed']))


if __name__ == '__main__':
    main()
