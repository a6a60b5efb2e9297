"""What the console shows of a run: its log file has everything, the console what a user reads."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

DEBUG = 'MMDET_DDETR_DEBUG'  # environment variable: all on the console, and tracebacks instead of sentences
DETAILS = re.compile(  # the beginnings of what mmengine logs in every run, hundreds of lines
    r'\n-+\nSystem environment:|Config:\n|Hooks will be executed|Distributed training is not used|'
    r'paramwise_options -- |\S+ is skipped since its requires_grad=False|'
    r'"(FileClient|HardDiskBackend)" |Failed to search registry with scope "(mmdet|mmdet_ddetr|mmengine)"'
)


def wants_everything() -> bool:
    return os.environ.get(DEBUG, '') not in ('', '0')


@contextmanager
def progress(title: str, total: int | None, shown: bool, stderr: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar that a function moves on.

    Args:
        total: None: it is not known, and only counted.
        shown: or no bar at all.
    """
    if not shown:
        yield lambda steps: None
        return
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=stderr)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda steps: bar.advance(task, steps)


class ReadableLog:
    """For a Runner: keeps details off the console, and what a full disk does to the log file as well."""

    def build_logger(self, *args, **kwargs):
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = _Quiet(handler)
            elif not wants_everything():
                handler.addFilter(_is_news)
        return logger


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps details off the console where there is no Runner."""
    handlers = [
        handler
        for handler in MMLogger.get_current_instance().handlers
        if not (wants_everything() or isinstance(handler, logging.FileHandler) or _is_news in handler.filters)
    ]
    for handler in handlers:
        handler.addFilter(_is_news)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not DETAILS.match(str(record.msg))


class _Quiet:
    """``Handler.handleError``, but for what the disk refuses: the console has the line, too."""

    def __init__(self, handler: logging.Handler):
        self.others = handler.handleError

    def __call__(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            self.others(record)
