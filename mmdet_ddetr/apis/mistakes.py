"""One sentence for a mistake in a command or a config, instead of a traceback that ends inside mmengine.

What is raised while something is built from a config is put down to the config; whatever else is raised is left as it
is. The traceback is kept in any case: in the log file, or by ``MMDET_DDETR_DEBUG=1`` on the console.
"""

import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from mmengine.logging import MMLogger
from mmengine.registry import Registry, build_from_cfg
from mmengine.runner import FlexibleRunner, Runner

from ..checkpoints import CheckpointError
from ..datasets import DataError
from ..hooks.errors import StartError
from .configs import ConfigError
from .console import DEBUG, wants_everything

SENTENCES = (CheckpointError, ConfigError, DataError, StartError)  # their message says what to mend
NOT_REGISTERED = re.compile(r"'?(\S+) is not in the (\S+)::(.+?) registry")
UNEXPECTED = re.compile(r"got an unexpected keyword argument '(\w+)'")
MISSING = re.compile(r'missing \d+ required (?:positional|keyword-only) arguments?: (.+)')
FROM_WORKER = re.compile(r'Caught \w*Error in DataLoader worker')


def end(error: Exception, *known: type[Exception]) -> NoReturn:
    """End the program with a sentence, where one says it all, or else with the error itself.

    Args:
        known: errors that the tool raises with such a sentence.
    """
    sentence = None if wants_everything() else explain(error)
    if sentence is None and (wants_everything() or not isinstance(error, known)):
        raise error
    where = '' if isinstance(error, (*SENTENCES, *known)) else keep_traceback(error)
    sys.exit(f'{Path(sys.argv[0]).name}: {sentence or error}{where}')


def explain(error: Exception) -> str | None:
    """What to mend, or None where that is not known."""
    text = str(error).strip()
    if isinstance(error, SENTENCES):
        if FROM_WORKER.match(text):  # wrapped in the traceback of a worker of the data loader
            text = text.rpartition(f'{type(error).__name__}: ')[2]
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f'{text.splitlines()[0]} Smaller batches or images need less: '
            '--cfg-options train_dataloader.batch_size=1, see docs/performance.md'
        )
    frame = _building(error)
    if frame is not None:
        return _explain_config(error, text, frame)
    if isinstance(error, OSError) and error.filename is not None:
        return f'{str(error.filename)!r}: {error.strerror}'
    return None


def _explain_config(error: Exception, text: str, frame: FrameType) -> str:
    what = _name_of_built(frame)
    if found := NOT_REGISTERED.search(text):
        return f'the config has an unknown type {found[1]!r}{_like(found[1], _names(frame.f_locals.get("registry")))}'
    if (found := UNEXPECTED.search(text)) and what:
        return f'{what} takes no argument {found[1]!r}{_like(found[1], _parameters(frame))}'
    if (found := MISSING.search(text)) and what:
        return f'{what} needs {found[1]} in the config'
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return (
            f'{what or "the config"}: no file {str(error.filename)!r} in {os.getcwd()}. Where the data are is set by '
            'data_root, ann_file and data_prefix of the config'
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f'{str(error.filename)!r}: {error.strerror}'
    reason = text.splitlines()[0] if text else 'no reason is given'
    return f'{what or "the run"} cannot be built from the config: {type(error).__name__}: {reason}'


def _frames(error: Exception) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _building(error: Exception) -> FrameType | None:
    """Where the innermost thing is built, or the runner; None if nothing is."""
    frames = _frames(error)
    built = [frame for frame in frames if frame.f_code is build_from_cfg.__code__ or _builds_loader(frame)]
    if built:
        return built[-1]
    return next((frame for frame in frames if frame.f_code.co_name == 'make_runner'), None)


def _builds_loader(frame: FrameType) -> bool:
    return frame.f_code in (Runner.build_dataloader.__code__, FlexibleRunner.build_dataloader.__code__)


def _name_of_built(frame: FrameType) -> str:
    if _builds_loader(frame):
        return _name_of_loader(frame)
    cls = frame.f_locals.get('obj_cls')
    return getattr(cls, '__name__', '')


def _name_of_loader(frame: FrameType) -> str:
    config, outer = frame.f_locals['dataloader'], frame.f_back
    while outer is not None:
        for runner in (outer.f_locals.get('self'), outer.f_locals.get('runner')):
            for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
                if isinstance(runner, Runner | FlexibleRunner) and getattr(runner, f'_{name}', None) is config:
                    return name
        outer = outer.f_back
    return 'the data loader'


def _names(registry: Registry | None) -> Iterator[str]:
    """What a config may write there."""
    if not isinstance(registry, Registry):
        return
    root = registry
    while root.parent is not None:
        root = root.parent
    yield from root.module_dict
    for child in root.children.values():
        yield from child.module_dict
        for grandchild in child.children.values():
            yield from (f'{grandchild.scope}.{name}' for name in grandchild.module_dict)


def _parameters(frame: FrameType) -> list[str]:
    """Arguments of what is built, those of the classes that it passes the rest on to among them."""
    cls = torch.utils.data.DataLoader if _builds_loader(frame) else frame.f_locals['obj_cls']
    inits = [base.__init__ for base in cls.__mro__[:-1]] if inspect.isclass(cls) else [cls]
    return [
        name for init in inits for name in inspect.signature(init).parameters if name not in ('self', 'args', 'kwargs')
    ]


def _like(name: str, names) -> str:
    near = get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.6)
    return f'; did you mean {" or ".join(near)}?' if near else ''


def keep_traceback(error: Exception) -> str:
    """Write the traceback to the run's log file, if there is one; where it is, for the sentence."""
    logger = MMLogger.get_current_instance() if MMLogger._instance_dict else None
    for handler in logger.handlers if logger else ():
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).is_file():  # --check removes its own
            lines = ''.join(traceback.format_exception(error))
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, '', 0, lines, (), None))
            return f'\n(traceback: {logger.log_file})'
    return f'\n(traceback: set {DEBUG}=1)'
