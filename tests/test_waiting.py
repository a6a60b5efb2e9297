"""How long threads wait: the user's own settings stay, and nothing is set when it is too late."""

import os
import subprocess
import sys

import pytest

SHOW = 'import os; print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))'


@pytest.mark.parametrize(
    'settings, before, expected',
    [
        ({}, '', '10000 None'),
        ({}, 'import torch; ', 'None None'),
        ({'GOMP_SPINCOUNT': '7'}, '', '7 None'),
        ({'OMP_WAIT_POLICY': 'active'}, '', 'None active'),
    ],
)
def test_threads_wait_briefly_unless_told_otherwise(settings, before, expected):
    env = {key: value for key, value in os.environ.items() if key not in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')}
    code = f'{before}import mmdet_ddetr; {SHOW}'
    done = subprocess.run([sys.executable, '-c', code], env=env | settings, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
