"""How setup.py builds mmdet_ddetr/_C from csrc/: the CPU kernels and, with nvcc and a CUDA PyTorch, the CUDA kernels.

The extension uses LibTorch's stable ABI and nothing of Python: one build runs with every later PyTorch and any Python.
The build reads PyTorch's headers and libraries and never imports it.

Environment variables:
    MMDET_DDETR_EXT       0: do not build; 1: fail if it cannot be built. Otherwise a failure leaves a working package
                          whose ops are plain PyTorch.
    FORCE_CUDA            1: build the CUDA kernels beside a CPU PyTorch, too, and fail if there is no nvcc; 0: never.
    TORCH_CUDA_ARCH_LIST  compute capabilities, for example "8.0;9.0+PTX"; by default the machine's GPUs, or, without a
                          GPU, all common ones.
    CUDA_HOME, MAX_JOBS, CXX, CXXFLAGS, NVCC_FLAGS  as everywhere.
"""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path('csrc')  # relative to setup.py, as setuptools wants it
TORCH_TARGET_VERSION = (2, 10)
ARCHITECTURES = ('7.5', '8.0', '8.6', '8.9', '9.0', '10.0', '12.0+PTX')


def extensions() -> list[Extension]:
    """The extension, or nothing, with a notice, where it cannot be built."""
    wish = os.environ.get('MMDET_DDETR_EXT', '')
    if wish == '0':
        return []
    problem = _problem()
    if problem and wish == '1':
        raise RuntimeError(f'MMDET_DDETR_EXT=1, but {problem}')
    if problem:
        print(f'mmdet_ddetr: no compiled ops, plain PyTorch does their work: {problem}', file=sys.stderr)
        return []
    # What takes longest first, so that no processor waits for it at the end: all kernels for an instruction set.
    paths = sorted([*CSRC.glob('*.cpp'), *CSRC.glob('cpu/*.cpp')], key=lambda path: ('isa_' not in path.name, path))
    sources = [str(path) for path in paths]
    headers = [str(path) for path in sorted(CSRC.rglob('*.h'))]
    return [Extension('mmdet_ddetr._C', sources, depends=headers, py_limited_api=True, optional=wish != '1')]


def torch_folder() -> Path | None:
    """Where PyTorch is installed.

    pip builds in an environment of its own that hides the installed PyTorch by way of PYTHONPATH, but runs the same
    interpreter: another process without that variable finds it. No build requirement could help: it would download a
    PyTorch of several GB, and not the one that is going to be used.
    """
    spec = importlib.util.find_spec('torch')
    if spec is None:
        code = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
        environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
        found = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
        origin = found.stdout.strip()
    else:
        origin = spec.origin
    return Path(origin).parent if origin else None


def _problem() -> str | None:
    if sys.platform == 'win32':
        return 'the kernels need the vector extensions of GCC or Clang'
    torch = torch_folder()
    if torch is None:
        return 'PyTorch is not installed; install it, then this package again'
    version = runpy.run_path(str(torch / 'version.py'))['__version__']
    if tuple(map(int, re.findall(r'\d+', version)[:2])) < TORCH_TARGET_VERSION:
        return f'PyTorch {version} is older than {TORCH_TARGET_VERSION[0]}.{TORCH_TARGET_VERSION[1]}'
    return None


class BuildExtension(build_ext):
    """Compiles .cpp with setuptools' compiler and .cu with nvcc, several files at once, and links the extension."""

    def build_extension(self, ext):
        torch = torch_folder()
        includes = [str(torch / 'include'), str(torch / 'include' / 'torch' / 'csrc' / 'api' / 'include')]
        macros = [('TORCH_TARGET_VERSION', f'0x{TORCH_TARGET_VERSION[0]:02x}{TORCH_TARGET_VERSION[1]:02x}000000000000')]

        def compile_cpp(source):
            flags = ['-std=c++17', '-O3', '-fvisibility=hidden', '-g0', '-Wno-psabi', *_flags('CXXFLAGS')]
            return self.compiler.compile(
                [source], output_dir=self.build_temp, macros=macros, include_dirs=includes, extra_postargs=flags
            )

        def compile_cu(source):
            target = Path(self.build_temp, source).with_suffix('.cu.o')
            target.parent.mkdir(parents=True, exist_ok=True)
            command = [nvcc, '-c', source, '-o', str(target), '-std=c++17', '-O3', '-DUSE_CUDA']
            command += [f'--threads={processes}', '-Xcompiler=-fPIC,-fvisibility=hidden']
            command += [*(f'-D{name}={value}' for name, value in macros), *(f'-I{folder}' for folder in includes)]
            command += [*_architecture_flags(nvcc), *_flags('NVCC_FLAGS')]
            _run(command)
            return [str(target)]

        nvcc = _nvcc(torch)
        processes = int(os.environ.get('MAX_JOBS', os.cpu_count()))  # nvcc's --threads: architectures side by side
        jobs = [(compile_cpp, source) for source in ext.sources]
        jobs += [(compile_cu, str(source)) for source in sorted(CSRC.glob('cuda/*.cu')) if nvcc]
        with ThreadPoolExecutor(processes) as pool:
            objects = sum(pool.map(lambda job: job[0](job[1]), jobs), [])

        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        if nvcc:  # it knows where its own runtime library is
            # libtorch needs libtorch_cuda where PyTorch has one: so the extension loads beside a CPU PyTorch, too
            libraries = ['-Xlinker=--no-as-needed', f'-L{torch / "lib"}', '-ltorch', '-ltorch_cpu']
            _run([nvcc, '-shared', *objects, '-o', target, *libraries])
        else:
            self.compiler.link_shared_object(
                objects, target, libraries=['torch_cpu'], library_dirs=[str(torch / 'lib')], target_lang='c++'
            )


def _run(command: list[str]):
    if subprocess.run(command).returncode:
        raise CompileError(f'{" ".join(command)} failed')


def _nvcc(torch: Path) -> str | None:
    """nvcc, if the CUDA kernels are to be built."""
    force = os.environ.get('FORCE_CUDA', '')
    wanted = force == '1' or (force != '0' and runpy.run_path(str(torch / 'version.py')).get('cuda'))
    if not wanted:
        return None
    home = os.environ.get('CUDA_HOME')
    nvcc = shutil.which('nvcc', path=f'{home}/bin' if home else None)
    if nvcc is None and force == '1':
        raise CompileError('FORCE_CUDA=1, but there is no nvcc; set CUDA_HOME')
    if nvcc is None:
        print('mmdet_ddetr: no CUDA kernels, plain PyTorch does their work: nvcc not found', file=sys.stderr)
    return nvcc


def _architecture_flags(nvcc: str) -> list[str]:
    wanted = re.split(r'[;,\s]+', os.environ.get('TORCH_CUDA_ARCH_LIST', '').strip())
    if wanted == ['']:
        known = subprocess.run([nvcc, '--list-gpu-arch'], capture_output=True, text=True, check=True).stdout.split()
        wanted = _visible_gpus() or [a for a in ARCHITECTURES if f'compute_{_number(a)}' in known]
    flags = []
    for architecture in wanted:
        number = _number(architecture)
        flags.append(f'-gencode=arch=compute_{number},code=sm_{number}')
        if architecture.endswith('+PTX'):
            flags.append(f'-gencode=arch=compute_{number},code=compute_{number}')
    return flags


def _visible_gpus() -> list[str]:
    if shutil.which('nvidia-smi') is None:
        return []
    query = ['nvidia-smi', '--query-gpu=compute_cap', '--format=csv,noheader']
    return sorted(set(subprocess.run(query, capture_output=True, text=True).stdout.split()))


def _number(architecture: str) -> str:  # '9.0+PTX' -> '90'
    return architecture.removesuffix('+PTX').replace('.', '')


def _flags(variable: str) -> list[str]:
    return os.environ.get(variable, '').split()
