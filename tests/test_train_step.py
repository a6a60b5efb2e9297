"""benchmarks/train_step.py: steps of a config beside those of another checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = 'deformable-detr-refine-twostage-dn_lite0_shapes'


def run(*arguments, **options):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *arguments], env=environment, capture_output=True, text=True, **options
    )


@pytest.mark.slow
def test_two_checkouts(tmp_path):
    """The other one is this one by another name; a config that does not exist ends in its own sentence."""
    data = tmp_path / 'data'
    counts = ('--train', '8', '--val', '2', '--test', '2')
    assert run(ROOT / 'tools/make_shapes.py', data, *counts).returncode == 0
    other = tmp_path / 'other'
    other.symlink_to(ROOT)
    command = [ROOT / 'benchmarks/train_step.py', '--data', data, '--seconds', '0.1', '--tree', other, '--config']
    done = run(*command, CONFIG, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if CONFIG in line]
    assert len(rows) == 2 and '| 1.00 |' in rows[0] and str(other) in rows[1]
    assert (tmp_path / 'work_dirs/benchmarks/train_step_configs.md').read_text().strip() == done.stdout.strip()
    done = run(*command, 'no-such-config', cwd=tmp_path)
    assert done.returncode != 0 and 'no-such-config' in done.stderr
