"""benchmarks/gpu/check.py: stages fail alone and keep to their limits, and the report tells. Figures need a GPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GPU = ROOT / 'benchmarks/gpu'
sys.path[:0] = [str(GPU), str(ROOT / 'benchmarks')]
import check  # noqa: E402
import ops  # noqa: E402
import peers  # noqa: E402
import timing  # noqa: E402
import variants  # noqa: E402
import wheels  # noqa: E402


def python(code: str) -> list[str]:
    return [sys.executable, '-c', code]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the check with some stages in the place of its own: exit code and report."""

    def run(stages, *options):
        monkeypatch.setattr(check, 'stages', lambda *_: stages)
        monkeypatch.setattr(check, 'WORK', tmp_path / 'work')
        monkeypatch.setattr(check, 'find_gpus', lambda: [])
        out = tmp_path / 'out'
        monkeypatch.setattr(sys, 'argv', ['check.py', '--out', str(out), *options])
        code = check.main()
        return code, json.loads((out / 'gpu-report.json').read_text()), (out / 'gpu-report.md').read_text()

    return run


def test_a_stage_that_fails_or_hangs_does_not_stop_the_next(run, tmp_path):
    child = tmp_path / 'child'
    hang = f'import subprocess; subprocess.run(["sh", "-c", "echo $$ > {child}; sleep 60"])'
    stages = [
        check.Stage('breaks', 20, python('print("the last words"); raise SystemExit(3)')),
        check.Stage('hangs', 3, python(hang)),
        check.Stage('dies', 20, python('import os; os.abort()')),
        check.Stage('works', 20, python('print("12 passed")')),
        check.Stage('cannot', 20, ['no such program'], needs='no GPU'),
    ]
    start = time.monotonic()
    code, report, text = run(stages)
    assert code == 1 and time.monotonic() - start < 20
    status = {name: stage['status'] for name, stage in report['stages'].items()}
    assert status == {
        'breaks': 'exit code 3',
        'hangs': 'over 3 s',
        'dies': 'exit code -6',
        'works': 'passed',
        'cannot': 'left out: no GPU',
    }
    assert 'the last words' in text and '| works | passed |' in text
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        f'gpu-report.{end}' for end in ('json', 'md', 'log')
    }
    log = (tmp_path / 'out/gpu-report.log').read_text()
    assert log.index('===== breaks: exit code 3') < log.index('the last words') < log.index('12 passed')
    process = Path('/proc', child.read_text().strip(), 'stat')
    while process.exists() and process.read_text().split()[2] != 'Z':  # Z: dead, not yet collected
        assert time.monotonic() - start < 40, 'a process of the stage lives on'
        time.sleep(0.1)


def test_figures_of_a_stage_that_ran_out_of_time_are_kept(run, tmp_path):
    figures = dict(machine='a GPU', size=[800, 1333], images=2, mmcv_kernel=True, steps={'train, fp32': dict(ms=12.34)})
    code = (
        f'import time; open({str(tmp_path / "work/model.json")!r}, "w").write({json.dumps(figures)!r}); time.sleep(60)'
    )
    _, report, text = run([check.Stage('model', 3, python(code), result='model.json')])
    assert report['stages']['model']['figures'] == figures
    assert '| train, fp32 | 12.3 |' in text


def test_nothing_starts_when_the_time_is_over(run):
    _, report, _ = run([check.Stage('late', 20, python('print(1)'))], '--minutes', '0.01')
    assert report['stages']['late']['status'] == 'left out: no time left'


def test_stages_by_name(run, capsys):
    stages = [check.Stage(name, 20, python('print(1)')) for name in ('one', 'two')]
    assert list(run(stages, '--stages', 'two')[1]['stages']) == ['two']
    with pytest.raises(SystemExit):
        run(stages, '--stages', 'three')
    assert 'the stages are one,two' in capsys.readouterr().err


def test_a_stage_beside_another(run):
    """Compilers of peers run while the tests do; what measures waits for them."""
    stages = [
        check.Stage('peers', 20, python('import time; time.sleep(2); print(time.time())'), beside=True),
        check.Stage('tests', 20, python('import time; print(time.time())')),
        check.Stage('ops', 20, python('import time; print(time.time())')),
    ]
    _, report, _ = run(stages)
    peers, tests, ops = (float(report['stages'][name]['last_lines'][-1]) for name in ('peers', 'tests', 'ops'))
    assert tests < peers < ops


def test_the_plan_with_and_without_a_gpu(tmp_path):
    gpu = dict(name='H100', capability='9.0', driver='580')
    for gpus in ([], [gpu], [gpu, gpu]):
        plan = {stage.name: stage for stage in check.stages(tmp_path, gpus)}
        assert list(plan)[:4] == ['build', 'peers', 'tests', 'ops']
        for stage in plan.values():
            scripts = [Path(part) for part in map(str, stage.command) if part.endswith('.py')]
            assert all((ROOT / script).exists() for script in scripts), stage.name
        assert bool(plan['variants'].needs) == (not gpus)
        assert plan['build'].environment.get('TORCH_CUDA_ARCH_LIST') == ('9.0' if gpus else None)
        assert bool(plan['two processes'].needs) == (len(gpus) == 1)


@pytest.mark.slow
def test_what_breaks_the_device_costs_its_own_case_only(monkeypatch, tmp_path):
    """The script starts itself again, keeps what it has, and leaves out the culprit."""
    calls, commands, out = [], [], tmp_path / 'ops.json'

    def measure(peer, case, bandwidth):
        calls.append((case, peer))
        return dict(error='an illegal memory access', broke_device=True) if peer == 'theirs' else dict(forward=1)

    def execv(program, command):
        commands.append(command)
        raise SystemExit

    cases = [ops.attention.Case('decoder', B, 'float32', 'cpu') for B in (1, 2)]
    monkeypatch.setattr(ops, 'measure_attention', measure)
    monkeypatch.setattr(ops, 'cases', lambda: cases)
    monkeypatch.setattr(ops, 'measure_losses', dict)
    monkeypatch.setattr(ops, 'copy_bandwidth', lambda: 1e9)
    monkeypatch.setattr(ops.attention, 'available', lambda device: ['theirs', 'others'])
    monkeypatch.setattr(timing.os, 'execv', execv)
    monkeypatch.setattr(sys, 'argv', ['ops.py', '--out', str(out)])
    with pytest.raises(SystemExit):
        ops.main()
    assert commands == [[sys.executable, 'ops.py', '--out', str(out), '--go-on']]
    monkeypatch.setattr(sys, 'argv', commands[0][1:])
    ops.main()
    assert len(calls) == len(set(calls))
    assert [case.B for case, peer in calls if peer == 'theirs'] == [1]
    assert [case.B for case, peer in calls if peer == 'others'] == [1, 2]
    assert json.loads(out.read_text())['attention'][cases[0].name]['theirs']['error']


@pytest.mark.parametrize('built', [True, False])
def test_mmdets_model_is_never_measured_with_this_packages_ops(built, monkeypatch):
    import model
    from mmcv.ops import multi_scale_deform_attn as module

    kernels = object()
    for name, value in dict(IS_CUDA_AVAILABLE=True, ext_module=module.ext_module).items():
        monkeypatch.setattr(module, name, value)
    if built:
        monkeypatch.setitem(sys.modules, 'mmdet_ddetr_peer_mmcv', kernels)
    assert model.use_mmcv_kernel() == built
    assert (module.IS_CUDA_AVAILABLE, module.ext_module is kernels) == (built, built)


@pytest.mark.parametrize('slim', [True, False])
def test_what_a_slim_cuda_toolkit_lacks_comes_from_the_packages_of_torch(slim, monkeypatch, tmp_path):
    from torch.utils import cpp_extension

    packages, toolkit = tmp_path / 'nvidia', tmp_path / 'toolkit'
    for path in ('cudnn/include/cudnn.h', 'cu13/include/cusparse.h', 'cu13/lib/libcudart.so.13'):
        (packages / path).parent.mkdir(parents=True, exist_ok=True)
        (packages / path).touch()
    for path in [] if slim else ['include/cusparse.h', 'lib64/libcudart.so']:
        (toolkit / path).parent.mkdir(parents=True, exist_ok=True)
        (toolkit / path).touch()
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', str(toolkit))
    monkeypatch.setattr('torch.__file__', str(tmp_path / 'torch/__init__.py'))
    monkeypatch.setenv('CPATH', '/mine')
    monkeypatch.delenv('LIBRARY_PATH', raising=False)
    found = peers.complete_toolkit(tmp_path / 'out')
    if slim:
        assert found == dict(CPATH=f'{packages}/cu13/include:/mine', LIBRARY_PATH=f'{tmp_path}/out/lib')
        assert (tmp_path / 'out/lib/libcudart.so').resolve() == packages / 'cu13/lib/libcudart.so.13'
    else:
        assert found == {}


def test_a_machine_without_git_and_nvcc(monkeypatch):
    monkeypatch.setenv('PATH', '')
    machine = check.versions([])
    assert (machine['commit'], machine['nvcc']) == ('unknown', 'none')


def test_the_report_of_all_figures():
    times = dict(us=10.0, of_copy=0.5, host_us=20.0)
    ops = dict(
        machine='H100',
        copy_gb_per_s=3000.0,
        attention={'decoder, B=4': {'ours': dict(forward=times, backward=times), 'theirs': dict(error='no D=30')}},
        losses={'matching_cost': {'ours': times}},
    )
    lines = check.ops_section(ops)
    assert '| ours | 10.0 | 50% | 10.0 | 50% | 20.0 |' in lines
    assert any('theirs' in line and 'no D=30' in line for line in lines)
    passes = dict(forward=dict(us=8.0), backward=dict(us=16.0))
    faster = dict(forward=dict(us=4.0), backward=dict(us=32.0))
    measured = {'default': {'encoder': passes}, 'blocks 6': {'encoder': faster}, variants.NARROW: {'encoder': faster}}
    best = variants.best(measured)
    assert best == {
        'encoder, backward': 'default: 1.00 times the default',
        'encoder, forward': 'blocks 6: 2.00 times the default',
    }
    assert '| blocks 6 | 4.0, 32.0 |' in check.variants_section(dict(times=measured, best=best))


def test_wheels_are_those_of_the_lock_file():
    lines = wheels.locked(wheels.NEEDED, '3.12')
    locked = (ROOT / 'requirements/lock.txt').read_text().splitlines()
    assert len(lines) == len(wheels.NEEDED) and all(any(line in row for row in locked) for line in lines)
    assert wheels.locked(['shapely'], '3.10') != wheels.locked(['shapely'], '3.12')


@pytest.mark.slow
@pytest.mark.parametrize('script', ['sanitize', 'ops', 'model'])
def test_scripts_run_without_a_gpu(script, tmp_path):
    out = [] if script == 'sanitize' else ['--out', str(tmp_path / 'out.json')]
    done = subprocess.run([sys.executable, GPU / f'{script}.py', *out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if out:
        figures = json.loads((tmp_path / 'out.json').read_text())
        if script == 'ops':
            (parts,), text = figures['attention'].values(), check.ops_section(figures)
        else:
            parts, text = figures['steps'], check.model_section(figures)
        assert not [name for name, part in parts.items() if 'error' in part]
        assert all(any(line.startswith(f'| {name} |') for line in text) for name in parts)
        assert all(part.get('loss', 0) < 100 for part in parts.values()), 'weights that nobody has initialised'


@pytest.mark.slow
def test_every_variant_compiles(tmp_path):
    import shutil

    if shutil.which('nvcc') is None:
        pytest.skip('needs nvcc')
    command = [sys.executable, GPU / 'variants.py', '--out', tmp_path / 'variants.json', '--arch', '90']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = json.loads((tmp_path / 'variants.json').read_text())['built']
    assert built == [f'{name}, {dtype}' for name, dtype in variants.jobs()]
