"""Which checkpoint of a work directory a training goes on from."""

import re
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process

from ..checkpoints import CheckpointError
from ..checkpoints.read import check_sums, read

LAST = 'last_checkpoint'  # in the work directory: the path of one
INTERRUPTED = 'interrupted.pth'  # by a signal
NAMES = re.compile(rf'(epoch|iter)_\d+\.pth|{re.escape(INTERRUPTED)}')


def resume_newest(runner) -> None:
    """Let a runner that is to resume, from no checkpoint in particular, take the newest good one of its work directory.

    Raises:
        CheckpointError: there are checkpoints, but none that can be read.
    """
    if not runner._resume or runner._load_from is not None or runner._has_loaded:
        return
    outcome = [None, []]  # the choice, and what is to be said about it
    if is_main_process():
        try:
            outcome[0] = newest(Path(runner.work_dir), outcome[1])
        except CheckpointError as error:
            outcome[0] = error
    broadcast_object_list(outcome)
    choice, notes = outcome
    for note in notes:
        runner.logger.warning(note)
    if isinstance(choice, CheckpointError):
        raise choice
    if choice is None:
        runner.logger.info(f'{runner.work_dir} has no checkpoint to resume from: training starts at the beginning')
        runner._resume = False
    else:
        runner.logger.info(f'Resuming from {choice}')
    runner._load_from = choice


def newest(work_dir: Path, notes: list[str]) -> str | None:
    """Path of the checkpoint that ``last_checkpoint`` names, or, where that cannot be read, of the newest that can.

    A file of that name in ``work_dir`` goes before the path as it stands there, which is that of another place once
    the folder was moved or copied.

    Args:
        notes: gets a sentence about each file that was passed over.

    Returns:
        None if there is no checkpoint.

    Raises:
        CheckpointError: there are some, but none can be read; names them.
    """
    pointer = work_dir / LAST
    last = _read(pointer) if pointer.is_file() else None
    if last is not None and '://' in last:  # an object store
        return last
    named = _find(work_dir, last) if last is not None else None
    tried = []
    if named is not None:
        tried.append(named)
        try:
            iteration_of(named)
            check_sums(named)
            return str(named)
        except CheckpointError as error:
            notes.append(f'PASSED OVER: {error}')
    found = []
    for folder in dict.fromkeys([work_dir, *([named.parent] if named and _exists(named.parent) else [])]):
        for path in sorted(folder.iterdir()):
            if NAMES.fullmatch(path.name) and path not in tried:
                tried.append(path)
                try:
                    found.append((iteration_of(path), str(path)))
                except CheckpointError as error:
                    notes.append(f'PASSED OVER: {error}')
    for iteration, path in sorted(found, reverse=True):
        try:
            check_sums(Path(path))
        except CheckpointError as error:
            notes.append(f'PASSED OVER: {error}')
            continue
        notes.append(f'GOING ON FROM {path} (iteration {iteration}), the newest checkpoint that can be read')
        return path
    if tried:
        names = ', '.join(path.name for path in tried)
        raise CheckpointError(
            f'{work_dir} has no checkpoint that can be read (tried {names}): remove them to start anew, or name '
            f'another by --resume PATH. {" ".join(notes)}'
        )
    return None


def iteration_of(path: Path) -> int:
    """Look for what a training needs beside the weights, and say how far a checkpoint got.

    The weights stay in the file: mmengine reads them. That they are there as a whole, ``check_sums`` tells.

    Raises:
        CheckpointError: one sentence with the file's name.
    """
    if not _exists(path):
        raise CheckpointError(f'{path}, which {LAST} names, does not exist')
    if path.is_dir():  # sharded, by its strategy
        return -1
    checkpoint = read(path, 'cpu', mmap=True)
    check_resumable(checkpoint, path)
    return checkpoint['meta']['iter']


def check_resumable(checkpoint: dict, path: str | Path) -> None:
    """Raises CheckpointError, naming ``path``, if a checkpoint has no more than weights."""
    parts = dict(checkpoint) if isinstance(checkpoint, dict) else {}
    parts.update({f'meta.{key}': value for key, value in (parts.get('meta') or {}).items()})
    missing = [key for key in ('state_dict', 'message_hub', 'meta.epoch', 'meta.iter') if key not in parts]
    if missing:
        raise CheckpointError(
            f'{path} has no {" and no ".join(missing)}, so no training can go on from it; to start one from its '
            f'weights, set load_from instead of resume'
        )


def _read(pointer: Path) -> str | None:
    with open(pointer, encoding='utf-8', errors='replace') as file:
        text = file.read(2000).strip()
    return text if text and text.isprintable() and Path(text).name else None


def _find(work_dir: Path, last: str) -> Path:
    """The file of that name here; elsewhere only if checkpoints are kept elsewhere."""
    own, named = work_dir / Path(last).name, Path(last)
    kept_here = any(NAMES.fullmatch(path.name) and path.name != INTERRUPTED for path in work_dir.iterdir())
    return named if _exists(named) and not _exists(own) and not kept_here else own


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or no path at all
        return False
