"""What GitHub runs: pinned actions, few permissions, targets and versions that exist."""

import re

import pytest
import tomllib
import yaml
from documented import ROOT

FILES = sorted((ROOT / '.github/workflows').glob('*.yml'))
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in FILES}
JOBS = {(name, job): jobs for name, flow in WORKFLOWS.items() for job, jobs in flow['jobs'].items()}


def test_files():
    assert {'ci.yml', 'wheels.yml', 'release.yml'} == set(WORKFLOWS)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_actions_are_pinned(path):
    """To a commit, which nobody can move, with the version that it is of; one commit an action in all files."""
    uses = re.findall(r'uses: (\S+?)@(\S+)(.*)', path.read_text())
    assert uses or path.name == 'release.yml'
    for action, commit, comment in uses:
        assert re.fullmatch(r'[0-9a-f]{40}', commit) and re.fullmatch(r'  # v\d+\.\d+\.\d+', comment), action
        everywhere = re.findall(rf'{action}@(\S+)', '\n'.join(file.read_text() for file in FILES))
        assert set(everywhere) == {commit}


@pytest.mark.parametrize('flow', WORKFLOWS)
def test_permissions(flow):
    """Reading is all; a job that publishes has its own, and builds nothing."""
    assert WORKFLOWS[flow]['permissions'] == {'contents': 'read'}
    for job in WORKFLOWS[flow]['jobs'].values():
        if 'permissions' in job:
            assert not any('run' in step or 'checkout' in step.get('uses', '') for step in job['steps'])
            assert job['environment']


@pytest.mark.parametrize('flow, job', JOBS, ids='-'.join)
def test_job(flow, job):
    job = JOBS[flow, job]
    if 'uses' in job:
        assert (ROOT / job['uses']).is_file()
        return
    assert job['timeout-minutes'] <= 60
    makefile = (ROOT / 'Makefile').read_text()
    for step in job['steps']:
        for target in re.findall(r'^make (\S+)', step.get('run', ''), re.MULTILINE):
            assert re.search(rf'^{target}:', makefile, re.MULTILINE), target
        for file in re.findall(r'requirements/\S+', step.get('run', '')):
            assert (ROOT / file).is_file(), file
        if 'checkout' in step.get('uses', ''):
            assert step['with']['persist-credentials'] is False


def test_every_python_is_tested():
    low, high = re.search(
        r'>=3\.(\d+),<3\.(\d+)', tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['requires-python']
    ).groups()
    assert JOBS['ci.yml', 'test']['strategy']['matrix']['python'] == [f'3.{n}' for n in range(int(low), int(high))]


def test_the_image_has_what_it_builds_from():
    """`.dockerignore` lets in what the Dockerfile copies and what the build reads; PyTorch is that of the lock file."""
    let_in = re.findall(r'^!(\S+)', (ROOT / '.dockerignore').read_text(), re.MULTILINE)
    assert [name for name in let_in if not (ROOT / name).exists()] == []
    dockerfile = (ROOT / 'Dockerfile').read_text()
    copied = re.findall(r'^COPY (?!--from)(\S+)', dockerfile, re.MULTILINE)
    assert all(name == '.' or name.split('/')[0] in let_in for name in copied)
    torch = re.search(r'^torch==(\S+)', (ROOT / 'requirements/lock.txt').read_text(), re.MULTILINE)[1]
    assert f'TORCH_VERSION={torch}' in dockerfile
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['cibuildwheel']
    assert f'torch=={torch}' in settings['before-build']
    assert dockerfile.rindex('\nUSER 10001') < dockerfile.rindex('\nENTRYPOINT')
