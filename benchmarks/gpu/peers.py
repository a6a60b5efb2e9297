"""Build other projects' CUDA kernels on this machine, from sources that were carried there, as peers for ``ops.py``.

    python benchmarks/gpu/peers.py --sources .whl --out /tmp/peers

Nothing of them is part of this project. What does not build is left out of the comparison, with the compiler's last
words.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MMCV = 'mmdet_ddetr_peer_mmcv'  # the extension's name, and its file's
THC = '#pragma once\n#include <ATen/cuda/Atomic.cuh>\n'  # what THC/THCAtomics.cuh became
BINDING = """
#include <torch/extension.h>
at::Tensor ms_deform_attn_cuda_forward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                       const at::Tensor&, const int);
void ms_deform_attn_cuda_backward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                  const at::Tensor&, const at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&,
                                  const int);
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  m.def("ms_deform_attn_forward", &ms_deform_attn_cuda_forward, py::arg("value"), py::arg("shapes"), py::arg("starts"),
        py::arg("locations"), py::arg("weights"), py::arg("im2col_step"));
  m.def("ms_deform_attn_backward", &ms_deform_attn_cuda_backward, py::arg("value"), py::arg("shapes"),
        py::arg("starts"), py::arg("locations"), py::arg("weights"), py::arg("grad_output"), py::arg("grad_value"),
        py::arg("grad_locations"), py::arg("grad_weights"), py::arg("im2col_step"));
}
"""


def complete_toolkit(folder: Path) -> dict[str, str]:
    """Variables with which compilers find, among PyTorch's own packages, what the CUDA toolkit of this machine lacks.

    PyTorch's headers include cusparse.h, and its way to build an extension links libcudart; a slim toolkit has neither.
    """
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None:
        return {}
    result = {}
    packages = Path(torch.__file__).parents[1] / 'nvidia'
    header = next(packages.glob('*/include/cusparse.h'), None)
    if header and not Path(CUDA_HOME, 'include/cusparse.h').exists():
        result['CPATH'] = str(header.parent)
    library = next(packages.glob('**/libcudart.so.*'), None)
    if library and not any(Path(CUDA_HOME, lib, 'libcudart.so').exists() for lib in ('lib64', 'lib')):
        link = folder / 'lib/libcudart.so'
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(library)
        result['LIBRARY_PATH'] = str(link.parent)
    return {name: os.pathsep.join(filter(None, [path, os.environ.get(name)])) for name, path in result.items()}


def build_mmcv(sdist: Path, folder: Path) -> None:
    """mmcv's kernel of multi-scale deformable attention as ``mmdet_ddetr_peer_mmcv`` in ``folder``."""
    from torch.utils.cpp_extension import load

    work = folder / 'mmcv'
    (work / 'THC').mkdir(parents=True, exist_ok=True)
    (work / 'THC/THCAtomics.cuh').write_text(THC)
    (work / 'binding.cpp').write_text(BINDING)
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            if re.search(
                r'/ops/csrc/(common|pytorch)/(cuda/(ms_deform_attn_cuda|common_cuda))?\w*\.(hpp|cuh?)$', member.name
            ):
                text = archive.extractfile(member).read().decode()
                # Tensor.type() no longer says which type to dispatch on
                text = re.sub(r'\b(value|grad_output)\.type\(\),', r'\1.scalar_type(),', text)
                (work / Path(member.name).name).write_text(text)
    load(
        MMCV,
        [str(work / 'binding.cpp'), str(work / 'ms_deform_attn_cuda.cu')],
        extra_include_paths=[str(work)],
        build_directory=str(folder),
        extra_cuda_cflags=['-O3'],
        is_python_module=False,
    )


def build_torch_msda(sdist: Path, folder: Path) -> None:
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-index', '--no-deps', '--no-build-isolation']
    done = subprocess.run(
        [*command, '--target', folder, sdist],
        env=dict(os.environ, FORCE_CUDA='1'),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])


def build_deformops(_: Path, folder: Path) -> None:
    """Its CUDA kernel compiles itself when it is loaded; its Triton kernels do at the first call."""
    os.environ.update(deformops_settings(folder), DEFORMOPS_COMPILE='always')
    from deformops.backends.cuda.msda_fp32acc import load  # what its registry's Backend.CUDA is

    load()


def deformops_settings(folder: Path) -> dict[str, str]:
    """Where it finds what was built here; nothing is fetched or compiled while it is measured."""
    return dict(TORCH_EXTENSIONS_DIR=str(folder / 'extensions'), DEFORMOPS_DOWNLOAD='0', DEFORMOPS_COMPILE='never')


BUILDS = {
    'mmcv': ('mmcv-2*.tar.gz', build_mmcv),
    'torch-ms-deform-attn': ('torch_ms_deform_attn-*.tar.gz', build_torch_msda),
    'deformops': ('deformops-*.whl', build_deformops),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sources', type=Path, required=True, help='folder that benchmarks/gpu/wheels.py has filled')
    parser.add_argument('--out', type=Path, required=True, help='folder to build in; goes on the PYTHONPATH of ops.py')
    parser.add_argument('--only', choices=BUILDS, help='build this one, in this process')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only:
        pattern, build = BUILDS[args.only]
        found = sorted(args.sources.glob(pattern))
        if not found:
            raise SystemExit(f'{args.sources} has no {pattern}')
        return build(found[0], args.out)
    # Side by side, each in a process of its own: a compiler's crash or a broken setup.py ends one of them only.
    common = [sys.executable, __file__, '--sources', args.sources, '--out', args.out]
    environment = {**os.environ, **complete_toolkit(args.out)}

    def run(name):
        start = time.monotonic()
        done = subprocess.run(
            [*common, '--only', name], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        result = f'left out\n{done.stdout[-800:]}' if done.returncode else 'built'
        print(f'{name}, {time.monotonic() - start:.0f} s: {result}', flush=True)

    with ThreadPoolExecutor(len(BUILDS)) as pool:
        list(pool.map(run, BUILDS))


if __name__ == '__main__':
    main()
