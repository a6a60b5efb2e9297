"""Compile every CUDA source with nvcc alone, no GPU needed, and print what each kernel uses (`make cuda-check`).

Fails if a kernel does not compile without a warning, or spills registers to memory. Takes compute capabilities as
arguments; without any, those of A100, H100 and B200.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SOURCES = sorted(Path(__file__).parent.glob('*.cu'))
ARCHITECTURES = ['80', '90', '100']


class Usage(NamedTuple):
    registers: int
    shared: int  # bytes of a block
    stack: int  # bytes of a thread
    spills: int  # bytes stored and loaded


def find_nvcc() -> str | None:
    home = os.environ.get('CUDA_HOME')
    return shutil.which('nvcc', path=f'{home}/bin' if home else None)


def supported(nvcc: str, architecture: str) -> bool:
    known = subprocess.run([nvcc, '--list-gpu-arch'], capture_output=True, text=True, check=True).stdout.split()
    return f'compute_{architecture}' in known


def compile_source(nvcc: str, source: Path, architecture: str) -> str:
    """Return what ptxas reports, or raise SystemExit with the compiler's errors."""
    torch = importlib.util.find_spec('torch')
    if torch is None:
        raise SystemExit('The CUDA sources include headers of torch, which is not installed.')
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, '-std=c++17', '-O3', f'-arch=sm_{architecture}', '-cubin', '-Xptxas=-v']
        command += ['-Werror=all-warnings', '-DUSE_CUDA']
        command += ['-DTORCH_TARGET_VERSION=0x020a000000000000', f'-I{Path(torch.origin).parent / "include"}']
        command += ['-o', str(Path(folder, 'kernels.cubin')), str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f'{source.name} does not compile for sm_{architecture}:\n{result.stderr}')
    return result.stderr


def usage_of_kernels(report: str) -> dict[str, Usage]:
    """From ptxas -v, by mangled name."""
    usage = {}
    for block in report.split("Compiling entry function '")[1:]:
        registers, shared, stack, stores, loads = (
            int(match[1]) if (match := re.search(r'(\d+) ' + what, block)) else 0
            for what in ('registers', 'bytes smem', 'bytes stack frame', 'bytes spill stores', 'bytes spill loads')
        )
        usage[block.split("'")[0]] = Usage(registers, shared, stack, stores + loads)
    return usage


def plain_anonymous(mangled: str) -> str:
    """nvcc's name of the anonymous namespace has numbers that differ from run to run; g++'s has none."""
    match = re.search(r'(\d+)_GLOBAL__N_', mangled)
    if match is None:
        return mangled
    return mangled[: match.start()] + '12_GLOBAL__N_1' + mangled[match.end(1) + int(match[1]) :]


def readable(mangled: list[str]) -> list[str]:
    if shutil.which('c++filt') is None:
        return mangled
    names = subprocess.run(['c++filt', *mangled], capture_output=True, text=True, check=True).stdout.splitlines()
    return [re.sub(r'^void |\(anonymous namespace\)::|(mmdet_ddetr|cuda|c10)::|\((?!anon).*', '', n) for n in names]


def main(architectures: list[str]) -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print('No nvcc on this machine: the CUDA sources are not checked.')
        return 0
    for architecture in [a for a in architectures if not supported(nvcc, a)]:
        print(f'This nvcc does not know sm_{architecture}: not checked.')
        architectures = [a for a in architectures if a != architecture]

    jobs = [(nvcc, source, architecture) for architecture in architectures for source in SOURCES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda job: compile_source(*job), jobs))
    table: dict[str, dict[str, Usage]] = {}  # kernel -> architecture -> usage
    for (_, _, architecture), report in zip(jobs, reports):
        for name, usage in usage_of_kernels(report).items():
            table.setdefault(plain_anonymous(name), {})[architecture] = usage

    rows = sorted(zip(readable(list(table)), table.values()))
    width = max(len(name) for name, _ in rows)
    print(f'{"registers, bytes of shared memory":{width}}' + ''.join(f'{"sm_" + a:>14}' for a in architectures))
    for name, usages in rows:
        cells = (f'{usages[a].registers:>8}{usages[a].shared:>6}' for a in architectures)
        print(f'{name:{width}}' + ''.join(cells))
    spilling = [(name, a, u) for name, usages in rows for a, u in usages.items() if u.spills or u.stack]
    for name, architecture, u in spilling:
        print(f'{name} on sm_{architecture}: {u.spills} bytes of spills, {u.stack} bytes of stack', file=sys.stderr)
    print(f'{len(rows)} kernels, {len(spilling)} with spills')
    return bool(spilling)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:] or ARCHITECTURES))
