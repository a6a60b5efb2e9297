"""How long threads wait: the user's own settings stay, and nothing is set when it is too late."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SHOW = 'import os; print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))'


@pytest.mark.parametrize(
    'settings, before, expected',
    [
        ({}, '', '10000 None'),
        ({}, 'import torch; ', 'None None'),
        pytest.param({'GOMP_SPINCOUNT': '7'}, '', '7 None', marks=pytest.mark.slow),
        pytest.param({'OMP_WAIT_POLICY': 'active'}, '', 'None active', marks=pytest.mark.slow),
    ],
)
def test_threads_wait_briefly_unless_told_otherwise(settings, before, expected):
    env = {key: value for key, value in os.environ.items() if key not in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')}
    code = f'{before}import mmdet_ddetr; {SHOW}'
    done = subprocess.run([sys.executable, '-c', code], env=env | settings, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def imported(node):
    """The packages that a statement or a call imports; load_config of tools/_cli.py imports this one."""
    if isinstance(node, ast.Import):
        return [alias.name.split('.')[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module.split('.')[0]]
    return ['mmdet_ddetr'] if getattr(getattr(node, 'func', None), 'id', None) == 'load_config' else []


@pytest.mark.parametrize('tool', sorted((ROOT / 'tools').glob('[!_]*.py')), ids=lambda path: path.stem)
def test_tools_import_the_package_first(tool):
    """In every function, before anything that imports PyTorch: else it would be too late."""
    heavy = 'torch', 'torchvision', 'mmcv', 'mmdet'
    module = ast.parse(tool.read_text())
    assert not any(name in heavy for node in module.body for name in imported(node))
    for function in (node for node in module.body if isinstance(node, ast.FunctionDef)):
        nodes = sorted(ast.walk(function), key=lambda node: getattr(node, 'lineno', 0))
        names = [name for node in nodes for name in imported(node) if name in (*heavy, 'mmdet_ddetr')]
        assert [*names, 'mmdet_ddetr'][0] == 'mmdet_ddetr', function.name
