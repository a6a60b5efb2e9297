"""The command lines of a report: what one does with a detector that was trained, in the folder where it was."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

OWN = ('data', 'work_dir', 'load_from', 'resume', 'check', 'pictures')  # options of one training alone

LONG = 100  # characters of a line


def commands(
    checkpoint: str | Path,
    config: str | Path,
    work_dir: str | Path,
    sources: Sequence[str | Path],
    example: str | Path | None,
    score: float,
    options: Mapping,
    ended_early: bool,
) -> list[tuple[str, str]]:
    """What each is for, and the command; their paths are those of the current folder.

    Args:
        sources: images to predict, or folders of them.
        example: one with a detection to explain; None: there is none.
        score: from which detections are shown.
        options: of tools/finetune.py that are not at their defaults, ``data`` among them.
        ended_early: the training can be resumed.
    """
    checkpoint, config, work_dir = map(_path, (checkpoint, config, work_dir))
    found = [
        (
            'Detect in pictures, videos and folders',
            _line('predict', '--weights', checkpoint, '--source', *map(_path, sources), '--conf', f'{score:g}'),
        )
    ]
    if example is not None:
        explain = _line('explain', config, checkpoint, _path(example), '--score-thr', f'{score:g}')
        found.append(('See what the detector looks at', explain))
    has_onnx = all(map(find_spec, ('onnx', 'onnxscript')))
    out = os.path.join(work_dir, 'detector.onnx' if has_onnx else 'detector.pt2')
    export = _line('export', config, checkpoint, out, '--threshold', f'{score:g}')
    found.append(
        (
            'One file that needs onnxruntime alone'
            if has_onnx
            else 'One file that needs torch alone (for ONNX: pip install onnx onnxscript onnxruntime)',
            export,
        )
    )
    what = 'Go on with this training, which ended early' if ended_early else 'Test it and write this page once more'
    found.append((what, _line('finetune', '--work-dir', work_dir, '--resume')))
    data = ('--data', _path(options['data']), '--load-from', checkpoint, '--work-dir', _new(work_dir))
    again = _line('finetune', *data, *_carried(options))
    found.append(('Train on from this detector, after adding images or classes', again))
    return found


def _line(tool: str, *arguments: str) -> str:
    """For a shell; a long one goes on in further lines."""
    parts = [f'{_python()} -m mmdet_ddetr {tool}']
    for argument in map(shlex.quote, arguments):
        if argument.startswith('--') or not parts[-1].startswith('--'):
            parts.append(argument)
        else:
            parts[-1] += f' {argument}'  # of the option before it
    lines = ['']
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > LONG:
            lines.append('   ')
        lines[-1] = f'{lines[-1]} {part}' if lines[-1] else part
    return ' \\\n'.join(lines)


def _python() -> str:
    """``python``, where that is this one."""
    found, own = shutil.which('python'), sys.executable
    same = found and os.path.dirname(found) == os.path.dirname(own) and os.path.samefile(found, own)
    return 'python' if same else shlex.quote(_path(own))


def _path(path: str | Path) -> str:
    """From the current folder where it is inside, as a rule the shortest; never like an option."""
    path = os.path.abspath(path)
    relative = os.path.relpath(path)
    if relative.startswith(os.pardir + os.sep):
        return path
    return os.path.join(os.curdir, relative) if relative.startswith('-') else relative


def _new(work_dir: str) -> str:
    """A folder beside, which is not there yet."""
    number = 2
    while os.path.exists(f'{work_dir}-{number}'):
        number += 1
    return f'{work_dir}-{number}'


def _carried(options: Mapping) -> list[str]:
    """What makes another training like this one."""
    arguments = []
    for name, value in options.items():
        if name in OWN or value is None or value is False:
            continue
        if name == 'config' and os.path.exists(value):
            value = _path(value)
        values = value if isinstance(value, list) else [] if value is True else [value]
        arguments += [f'--{name.replace("_", "-")}', *map(str, values)]
    return arguments
