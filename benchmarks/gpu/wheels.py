"""Gather what a GPU machine without network needs, in a folder that travels with the checkout.

    python benchmarks/gpu/wheels.py             # .whl/: for Linux x86-64 and Python 3.12
    python benchmarks/gpu/check.py --wheels .whl    # there

torch, numpy, scipy, OpenCV and pytest are taken to be there. Versions are those of requirements/lock.txt. The peers
come as far as they can be had: deformops as a wheel, the others as sources, which the GPU machine compiles.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = (
    [
        'mmengine',
        'mmcv-lite',
        'mmdet',
        'addict',
        'platformdirs',
        'pycocotools',
        'shapely',
        'termcolor',
        'terminaltables',
    ]
    + ['yapf', 'setuptools']  # mmengine imports pkg_resources, which newer setuptools lack
)
PEER_WHEELS = ['deformops==3.0.1']
PEER_SOURCES = ['torch-ms-deform-attn==0.1.1', 'mmcv==2.1.0']
PLATFORMS = [f'manylinux_2_{n}_x86_64' for n in (28, 27, 24, 17)] + ['manylinux2014_x86_64', 'manylinux1_x86_64']


def locked(names: list[str], python: str) -> list[str]:
    """The lines of the lock file for these packages, without the markers of other Pythons."""
    version = tuple(map(int, python.split('.')))
    result = {}
    for line in (ROOT / 'requirements/lock.txt').read_text().splitlines():
        requirement, _, marker = (part.strip() for part in line.partition(';'))
        name = requirement.split('==')[0]
        bound = re.search(r"python_full_version (<|>=|==) '3\.(\d+)", marker)
        if bound:
            other = (3, int(bound[2]))
            fits = {'<': version < other, '>=': version >= other, '==': version == other}[bound[1]]
            if not fits:
                continue
        if name in names:
            result[name] = requirement
    missing = set(names) - set(result)
    if missing:
        raise SystemExit(f'requirements/lock.txt does not have {", ".join(sorted(missing))}')
    return list(result.values())


def download(arguments: list[str], folder: Path, **environment: str) -> bool:
    command = [sys.executable, '-m', 'pip', 'download', '-q', '--disable-pip-version-check', '--no-deps']
    return subprocess.run([*command, '-d', folder, *arguments], env={**os.environ, **environment}).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?', type=Path, default=ROOT / '.whl', help='default: %(default)s')
    parser.add_argument('--python', default='3.12', help='version there (default: %(default)s)')
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    there = ['--only-binary=:all:', f'--python-version={args.python}', '--implementation=cp']
    there += [f'--platform={platform}' for platform in PLATFORMS]
    if not download([*there, *locked(NEEDED, args.python)], args.folder):
        raise SystemExit('a package that is needed could not be downloaded')
    missing = [peer for peer in PEER_WHEELS if not download([*there, peer], args.folder)]
    for peer in PEER_SOURCES:  # their metadata is made by running setup.py, which imports torch
        if not download(['--no-build-isolation', '--no-binary=:all:', peer], args.folder, MMCV_WITH_OPS='1'):
            missing.append(peer)
    size = sum(path.stat().st_size for path in args.folder.iterdir()) / 2**20
    print(f'{len(list(args.folder.iterdir()))} files, {size:.1f} MiB in {args.folder}')
    if missing:
        print(f'left out, so not compared with: {", ".join(missing)}')


if __name__ == '__main__':
    main()
