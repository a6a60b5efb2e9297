"""Prove and measure the CUDA side on the GPU of this machine (`make gpu-check`); at most eight minutes on an H100.

    python benchmarks/gpu/check.py                          # in an environment that has this package's dependencies
    python benchmarks/gpu/check.py --wheels .whl            # without network: see wheels.py
    python benchmarks/gpu/check.py --stages build,tests,ops

Stages run one after the other, each a process of its own with a time limit, in the order of their worth. One that fails
does not stop the next. As soon as it ends, what it found is in gpu-report.json and gpu-report.md, all that it printed
in gpu-report.log. Without a GPU the stages that can still show something do so on the CPU, and the report says so.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from peers import deformops_settings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / 'work_dirs/gpu_check'  # what is built and unpacked, and the figures and output of each stage
PYTHON = sys.executable


@dataclass
class Stage:
    """A command of the check.

    Attributes:
        seconds: limit; the stage's whole process group is ended after it.
        command: what runs, in the checkout's root.
        result: JSON file that the command fills, in WORK.
        needs: why it cannot run here; empty where it can.
        environment: beside this process's own.
        beside: runs while the next stage does, which does not measure.
    """

    name: str
    seconds: int
    command: list
    result: str = ''
    needs: str = ''
    environment: dict = field(default_factory=dict)
    beside: bool = False


def stages(wheels: Path | None, gpus: list[dict]) -> list[Stage]:
    """All stages, the most telling first."""
    no_gpu = '' if gpus else 'no GPU'
    no_sources = '' if wheels else 'no --wheels with the sources of peers'
    sanitizer = shutil.which('compute-sanitizer')
    architectures = ';'.join(sorted({gpu['capability'] for gpu in gpus}))
    peers = WORK / 'peers'
    build = dict(MMDET_DDETR_EXT='1', **(dict(FORCE_CUDA='1', TORCH_CUDA_ARCH_LIST=architectures) if gpus else {}))
    path = os.pathsep.join(map(str, [peers, *filter(None, [os.environ.get('PYTHONPATH')])]))
    with_peers = dict(PYTHONPATH=path, TORCH_CUDA_ARCH_LIST=architectures, **deformops_settings(peers))
    pytest = [PYTHON, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--tb=short']
    if gpus:
        pytest += ['tests/ops', '-m', 'gpu and not slow', '-n', '8']
    else:
        pytest += ['tests/ops/test_attention_values.py', '-k', 'cpu']
    result = [
        Stage('build', 120, [PYTHON, 'setup.py', '-q', 'build_ext', '--inplace', '--force'], environment=build),
        Stage(
            'peers',
            150,
            [PYTHON, HERE / 'peers.py', '--sources', wheels, '--out', peers],
            needs=no_gpu or no_sources,
            environment=dict(TORCH_CUDA_ARCH_LIST=architectures),
            beside=True,
        ),
        Stage('tests', 120, pytest),
        Stage('ops', 120, [PYTHON, HERE / 'ops.py'], 'ops.json', environment=with_peers),
        Stage('model', 160, [PYTHON, HERE / 'model.py'], 'model.json', environment=with_peers),
        Stage('variants', 100, [PYTHON, HERE / 'variants.py'], 'variants.json', needs=no_gpu),
    ]
    for tool in ('memcheck', 'racecheck', 'synccheck'):
        # Our kernels only, where the tool can tell them apart: PyTorch's are not the question.
        command = [sanitizer, '--tool', tool, '--error-exitcode', '9', '--kernel-regex', 'kns=mmdet_ddetr']
        needs = no_gpu or ('' if sanitizer else 'no compute-sanitizer')
        result.append(Stage(tool, 45, [*command, PYTHON, HERE / 'sanitize.py'], needs=needs))
    processes = [
        PYTHON,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '2',
        HERE / 'two_processes.py',
    ]
    fewer = 'fewer than two GPUs' if len(gpus) == 1 else ''
    result.append(Stage('two processes', 60, processes, needs=fewer, environment=dict(OMP_NUM_THREADS='1')))
    for stage in result:
        if stage.result:
            stage.command += ['--out', WORK / stage.result]
    return result


def find_gpus() -> list[dict]:
    """Name, capability, driver and memory of each GPU that PyTorch sees; nvidia-smi alone would also list others."""
    code = (
        'import json, torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; '
        'print(json.dumps([dict(name=torch.cuda.get_device_name(i), '
        'capability="%d.%d" % torch.cuda.get_device_capability(i)) for i in range(n)]))'
    )
    found = json.loads(subprocess.run([PYTHON, '-c', code], capture_output=True, text=True, check=True).stdout)
    if found:
        driver = output_of('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader').split()
        found = [dict(gpu, driver=driver[0] if driver else 'unknown') for gpu in found]
    return found


def output_of(*command: str) -> str:
    """What a program prints; nothing where it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return ''
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def install(wheels: Path, target: Path) -> None:
    """Unpack the wheels beside the machine's own packages and go on with them."""
    files = sorted(wheels.glob('*.whl'))
    if not files:
        raise SystemExit(f'--wheels {wheels} has no .whl files: fill it with python benchmarks/gpu/wheels.py')
    command = [PYTHON, '-m', 'pip', 'install', '-q', '--no-index', '--no-deps', '--no-compile', '--upgrade']
    if subprocess.run([*command, '--target', target, *files]).returncode:
        raise SystemExit(f'the wheels of {wheels} do not install; they are for Python 3.12 unless made with --python')
    os.environ['PYTHONPATH'] = os.pathsep.join(map(str, filter(None, [ROOT, target, os.environ.get('PYTHONPATH')])))
    sys.path.insert(0, str(target))  # for the versions in the report


class Running:
    """A stage's process, whose output goes to ``<name>.log``."""

    def __init__(self, stage: Stage, seconds: float):
        self.stage, self.log, self.seconds = stage, WORK / f'{stage.name.replace(" ", "-")}.log', seconds
        self.start = time.monotonic()
        with self.log.open('wb') as log:
            self.process = subprocess.Popen(
                list(map(str, stage.command)),
                cwd=ROOT,
                env={**os.environ, 'PYTHONUNBUFFERED': '1', **stage.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> dict:
        """End of the stage, at the latest at its limit: status, seconds, last lines."""
        try:
            self.process.wait(max(self.seconds - (time.monotonic() - self.start), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        code = self.process.returncode
        status = (
            'passed' if code == 0 else f'over {self.seconds:.0f} s' if code == -signal.SIGKILL else f'exit code {code}'
        )
        lines = self.log.read_text(errors='replace').strip().splitlines()
        return dict(status=status, seconds=round(time.monotonic() - self.start, 1), last_lines=lines[-15:])


def versions(gpus: list[dict]) -> dict:
    packages = ('torch', 'triton', 'numpy', 'mmengine', 'mmcv-lite', 'mmcv', 'mmdet', 'deformops')
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    release = [line.split('release ')[1] for line in output_of('nvcc', '--version').splitlines() if 'release ' in line]
    return dict(
        date=time.strftime('%Y-%m-%d %H:%M'),
        devices=gpus or 'no GPU: what ran, ran on the CPU',
        cpus=os.cpu_count(),
        python=platform.python_version(),
        nvcc=release[0] if release else 'none',
        commit=output_of('git', 'rev-parse', '--short', 'HEAD') or 'unknown',  # a copy of the files has no history
        packages=found,
    )


def write_report(out: Path, report: dict) -> None:
    (out / 'gpu-report.json').write_text(json.dumps(report, indent=1, default=str))
    (out / 'gpu-report.md').write_text(markdown(report))


def markdown(report: dict) -> str:
    """The report for a reader: the machine, a line a stage, the figures, and the last words of what failed."""
    machine = report['machine']
    devices = machine['devices']
    if not isinstance(devices, str):
        devices = ', '.join(
            f'{gpu["name"]} (sm_{gpu["capability"].replace(".", "")}, driver {gpu["driver"]})' for gpu in devices
        )
    packages = ', '.join(f'{name} {version}' for name, version in machine['packages'].items())
    lines = [
        '# GPU report',
        '',
        f'{devices}; {machine["cpus"]} CPU cores; {machine["date"]}; commit {machine["commit"]}',
        '',
    ]
    lines += [f'Python {machine["python"]}, nvcc {machine["nvcc"]}, {packages}', '']
    lines += ['| stage | result | seconds |', '|--|--|--|']
    lines += [
        f'| {name} | {stage["status"]} | {stage.get("seconds", "")} |' for name, stage in report['stages'].items()
    ]
    for name, section in (('ops', ops_section), ('model', model_section), ('variants', variants_section)):
        figures = report['stages'].get(name, {}).get('figures')
        if figures:
            lines += ['', *section(figures)]
    for name, stage in report['stages'].items():
        if stage['status'] != 'passed' and stage.get('last_lines'):
            lines += ['', f'## Last lines of {name}', '```', *stage['last_lines'], '```']
        elif name in ('build', 'peers', 'tests') and stage.get('last_lines'):
            lines += ['', f'{name}: {stage["last_lines"][-1]}']
    return '\n'.join(lines) + '\n'


def ops_section(figures: dict) -> list[str]:
    lines = ['## Ops', '', f'{figures["machine"]}; a copy moves {figures["copy_gb_per_s"]:.0f} GB/s.']
    for case, peers in figures['attention'].items():
        host = case.startswith('decoder')
        lines += ['', f'| {case} | forward, us | of copy | backward, us | of copy |' + (' host, us |' if host else '')]
        lines.append('|--|--|--|--|--|' + ('--|' if host else ''))
        for peer, passes in peers.items():
            if 'error' in passes:
                lines.append(f'| {peer} | {passes["error"].splitlines()[0][:80]} | | | |' + (' |' if host else ''))
                continue
            cells = [f'{passes[what]["us"]:.1f} | {passes[what]["of_copy"]:.0%}' for what in ('forward', 'backward')]
            tail = f' {passes["forward"]["host_us"]:.1f} |' if host else ''
            lines.append(f'| {peer} | {" | ".join(cells)} |{tail}')
    if 'deformable' in figures:
        lines += ['', '| | | forward, us | backward, us |', '|--|--|--|--|']
    for case, peers in figures.get('deformable', {}).items():
        for peer, passes in peers.items():
            cells = [f'{passes[what]["us"]:.1f}' if what in passes else '-' for what in ('forward', 'backward')]
            lines.append(f'| {case} | {peer} | {" | ".join(cells)} |')
    for case, peers in figures.get('losses', {}).items():
        lines.append(f'\n{case}: ' + ', '.join(f'{peer} {times["us"]:.1f} us' for peer, times in peers.items()))
    return lines


def model_section(figures: dict) -> list[str]:
    kernel = "mmdet's model uses mmcv's CUDA kernel" if figures['mmcv_kernel'] else "mmdet's model uses grid_sample"
    size = ' x '.join(map(str, figures['size']))
    lines = ['## Model', '', f'R50, {figures["images"]} images of {size}; {kernel}.', '']
    lines += ['| step | ms | peak, MB |', '|--|--|--|']
    for name, step in figures['steps'].items():
        if 'error' in step:
            lines.append(f'| {name} | {step["error"].splitlines()[0][:100]} | |')
        else:
            lines.append(f'| {name} | {step["ms"]:.1f} | {step.get("peak_mb", 0):.0f} |')
    return lines


def variants_section(figures: dict) -> list[str]:
    cases = sorted({case for times in figures['times'].values() for case in times})
    lines = [
        '## Constants',
        '',
        '| forward, backward in us | ' + ' | '.join(cases) + ' |',
        '|--' * (len(cases) + 1) + '|',
    ]
    for name, times in figures['times'].items():
        cells = []
        for case in cases:
            t = times.get(case)
            cells.append(f'{t["forward"]["us"]:.1f}, {t["backward"]["us"]:.1f}' if t else '')
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return [*lines, '', *(f'- {case}: {best}' for case, best in figures.get('best', {}).items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stages', help='comma-separated names of those to run (default: all)')
    parser.add_argument('--wheels', type=Path, help='folder of wheels and sources to use, made by wheels.py')
    parser.add_argument('--out', type=Path, default=WORK, help='folder of the report (default: %(default)s)')
    parser.add_argument(
        '--minutes',
        type=float,
        default=8,
        help='limit of the whole (default: %(default)s); with more, stages have more in proportion: for a slow machine',
    )
    args = parser.parse_args()
    end = time.monotonic() + args.minutes * 60
    out = args.out.resolve()
    for folder in (out, WORK):
        folder.mkdir(parents=True, exist_ok=True)
    (out / 'gpu-report.log').unlink(missing_ok=True)
    if args.wheels:
        install(args.wheels.resolve(), WORK / 'site')
    else:
        os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    gpus = find_gpus()
    plan = stages(args.wheels and args.wheels.resolve(), gpus)
    wanted = args.stages.split(',') if args.stages else [stage.name for stage in plan]
    unknown = set(wanted) - {stage.name for stage in plan}
    if unknown:
        parser.error(f'--stages {",".join(sorted(unknown))}: the stages are {",".join(stage.name for stage in plan)}')
    report = dict(machine=versions(gpus), stages={})
    background = None

    def finish(running: Running):
        result = running.wait()
        figures = WORK / running.stage.result
        if running.stage.result and figures.exists():
            result['figures'] = json.loads(figures.read_text())
        report['stages'][running.stage.name] = result
        title = f'{running.stage.name}: {result["status"]}, {result["seconds"]} s'
        print(title, flush=True)
        with (out / 'gpu-report.log').open('ab') as log:
            log.write(f'\n===== {title}\n'.encode() + running.log.read_bytes())
        write_report(out, report)

    for stage in plan:
        if stage.name not in wanted:
            continue
        left = end - time.monotonic()
        reason = stage.needs or ('' if left > 5 else 'no time left')
        if reason:
            report['stages'][stage.name] = dict(status=f'left out: {reason}')
            print(f'{stage.name}: left out: {reason}', flush=True)
            write_report(out, report)
            continue
        if stage.result:
            (WORK / stage.result).unlink(missing_ok=True)
        running = Running(stage, min(stage.seconds * max(args.minutes / 8, 1), left))
        if stage.beside:
            background = running
            continue
        finish(running)
        if background:
            finish(background)
            background = None
    if background:
        finish(background)
    write_report(out, report)
    print(f'{out}/gpu-report.md')
    return any(not stage['status'].startswith(('passed', 'left out')) for stage in report['stages'].values())


if __name__ == '__main__':
    sys.exit(main())
