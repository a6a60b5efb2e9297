"""Stand-ins for the CUDA libraries of a PyTorch wheel, with which it runs on a machine without a GPU.

A wheel of PyTorch for CUDA needs some gigabytes of NVIDIA's libraries even where no GPU is. These export what the wheel
asks for and answer every call with error 100, no device.
"""

import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path


def make_stand_ins(torch_lib: Path, folder: Path) -> list[str]:
    """Build what the libraries in ``torch_lib`` need of NVIDIA and do not have, with gcc; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    libraries = sorted(path for path in torch_lib.glob('*.so*') if path.is_file())
    needed, versions, defined, undefined = set(), {}, set(), set()
    for library in libraries:
        needed |= set(re.findall(r'NEEDED\).*\[(.*?)\]', _output('readelf', '-d', library)))
        versions |= _required_versions(_output('readelf', '-V', library))
        for line in _output('nm', '-D', library).splitlines():
            *address, kind, name = line.split()
            (undefined if kind in 'Uw' and not address else defined).add(name)
    missing = sorted(n for n in needed if re.match(r'lib(cu|nv|nccl)', n) and not (torch_lib / n).exists())
    functions, unversioned = defaultdict(set), set()
    defined = {name.partition('@')[0] for name in defined}
    for name, _, version in (symbol.partition('@') for symbol in undefined):
        if version:
            functions[versions.get(version.lstrip('@'))].add(name)
        elif name not in defined and re.match(r'cu|nv|nccl|__cuda', name):
            unversioned.add(name)
    for i, library in enumerate(missing):
        node = next((version for version, of in versions.items() if of == library), None)
        _build(folder / library, functions[library] | (unversioned if i == 0 else set()), node)
    return missing


def _required_versions(report: str) -> dict[str, str]:
    """Name of each version of symbols -> the library that it is of, from ``readelf -V``."""
    result, library = {}, None
    for line in report.splitlines():
        if match := re.search(r'File: (\S+)', line):
            library = match[1]
        elif match := re.search(r'Name: (\S+)\s+Flags', line):
            result[match[1]] = library
    return result


def _build(library: Path, functions: set[str], version: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, 'stand_in.c'), Path(folder, 'versions')
        source.write_text('\n'.join(f'int {name}(void) {{ return 100; }}' for name in sorted(functions)))
        script.write_text(f'{version} {{ global: *; }};')
        command = ['gcc', '-w', '-fno-builtin', '-shared', '-fPIC', '-o', library, source]
        command += [f'-Wl,-soname,{library.name}', *([f'-Wl,--version-script={script}'] if version else [])]
        subprocess.run(command, check=True)


def _output(*command) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
