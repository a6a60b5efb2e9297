"""What the inferencer's arguments may be, checked before a model is built or an image is read."""

import os
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import torch

from ..checks import check_score
from ..files import make_folder
from ..inference import DTYPES

NO_WINDOW = {'agg', 'cairo', 'pdf', 'pgf', 'ps', 'svg', 'template'}  # backends of matplotlib that only write files


def check_names(given, known) -> None:
    """Raise TypeError that names the argument which is not among the known ones, and the nearest of them."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f'; did you mean {near[0]}?' if near else f', expected one of {", ".join(known)}'
            raise TypeError(f'there is no argument {name!r}{hint}')


def check_model_arguments(model, weights, device, optimize=None) -> None:
    """Raise TypeError or ValueError that names the argument of ``DDetrInferencer`` which cannot be right."""
    if model is None and weights is None:
        raise ValueError(
            "neither model nor weights is given; a checkpoint of a training is enough: DDetrInferencer(weights='work_"
            "dirs/demo/epoch_12.pth')"
        )
    if not isinstance(model, str | os.PathLike | dict | None) and not hasattr(model, 'to_dict'):
        raise TypeError(f'model is of type {type(model).__name__}, expected a name, the path of a config or a config')
    if not isinstance(weights, str | os.PathLike | None):
        raise TypeError(f'weights is of type {type(weights).__name__}, expected the path of a checkpoint')
    for name, value in (('model', model), ('weights', weights)):
        if value == '':
            raise ValueError(f"{name} is '', expected a path or a name")
    if optimize not in (None, *DTYPES):
        raise ValueError(f'optimize must be one of {", ".join(DTYPES)}, or None, got {optimize!r}')
    if device is None:
        return
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {device!r}, expected one of torch's, such as 'cpu' or 'cuda:0'") from None
    if found.type == 'cuda' and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device is {str(device)!r}, but torch finds {torch.cuda.device_count()} GPUs here')


def check_call_arguments(batch_size, pred_score_thr, out_dir, show) -> None:
    """Raise TypeError or ValueError that names the argument of a call which cannot be right."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f'batch_size must be an integer of at least 1, got {batch_size!r}')
    check_score('pred_score_thr', pred_score_thr)
    if not isinstance(out_dir, str | os.PathLike):
        raise TypeError(f"out_dir is {out_dir!r}, expected the path of a folder, or '' to write nothing")
    if str(out_dir):
        inner = [folder for folder in (Path(out_dir, 'vis'), Path(out_dir, 'preds')) if folder.exists()]
        for folder in (Path(out_dir), *inner):
            try:
                make_folder(folder)
            except OSError as error:
                raise ValueError(f'out_dir is {str(out_dir)!r}, but {error}') from None
    if show:
        from matplotlib import pyplot

        if pyplot.get_backend().lower() in NO_WINDOW:  # mmengine would wait for a key that nobody can press
            raise ValueError('show=True needs a display, and there is none here; give out_dir= to write the pictures')


def check_stream_arguments(returns, unreadable, every, coco, out_dir) -> None:
    """As :func:`check_call_arguments`."""
    for name, value, known in (
        ('returns', returns, ('dict', 'datasample', 'supervision', 'pandas')),
        ('unreadable', unreadable, ('raise', 'skip')),
    ):
        if value not in known:
            raise ValueError(f'{name} must be one of {", ".join(known)}, got {value!r}')
    if not isinstance(every, int) or every < 1:
        raise ValueError(f'every must be an integer of at least 1, got {every!r}')
    if not isinstance(coco, str | os.PathLike | None):
        raise TypeError(f'coco is of type {type(coco).__name__}, expected the path of an annotation file')
    if coco and not str(out_dir):
        raise ValueError('coco needs out_dir, the folder that the results are written to')
    if returns in ('supervision', 'pandas') and find_spec(returns) is None:
        raise ImportError(f'returns={returns!r} needs a package that is not here: pip install {returns}')
