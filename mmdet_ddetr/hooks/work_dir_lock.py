import atexit
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook

from ..registry import HOOKS
from .errors import WorkDirInUseError

FILE = 'training.lock'  # in the work directory
_taken = set()  # (process, token) of the locks taken here; a forked process inherits it


@HOOKS.register_module()
class WorkDirLockHook(Hook):
    """One training at a time in a work directory: two would remove each other's checkpoints.

    The first process keeps ``training.lock`` there and touches it every ``beat`` seconds. Who finds one of a process of
    its own machine looks whether that process lives. Of another machine's (a network folder) it waits whether the file
    is touched, which needs no clocks that agree. What a killed training left is taken over.

    Args:
        beat: seconds.
        patience: beats to wait for a sign of life from another machine.

    Raises:
        WorkDirInUseError: in ``before_train`` of the second training, in all of its processes.
    """

    priority = 'VERY_HIGH'  # before anything is written or removed

    def __init__(self, beat: float = 10.0, patience: int = 4):
        self.beat = beat
        self.patience = patience
        self._lock = None

    def before_train(self, runner) -> None:
        refusal = [None]
        if is_main_process():
            self._lock = WorkDirLock(Path(runner.work_dir), self.beat, self.patience)
            try:
                note = self._lock.acquire()
                if note:
                    runner.logger.warning(note)
            except WorkDirInUseError as error:
                refusal[0] = str(error)
            except OSError as error:  # a full disk or the like: training is worth more than the lock
                runner.logger.error(
                    f'{self._lock.path} COULD NOT BE WRITTEN, so a second training is not kept out: {error}'
                )
        broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise WorkDirInUseError(refusal[0])

    def after_run(self, runner) -> None:  # all that belongs to the training is written
        if self._lock is not None:
            self._lock.release()


class WorkDirLock:
    """A file that says who works in a folder; see :class:`WorkDirLockHook`.

    Args:
        sleep: waits for so many seconds, for a sign of life from another machine.
    """

    def __init__(self, folder: Path, beat: float, patience: int, sleep: Callable[[float], None] = time.sleep):
        self.path = folder / FILE
        self.beat, self.patience, self.sleep = beat, patience, sleep
        self.owner = {**_this_process(), 'folder': folder.stat().st_ino, 'token': uuid.uuid4().hex}
        self._own = folder / f'{FILE}.{self.owner["token"]}'  # a name that nobody else uses
        self._released = threading.Event()

    def acquire(self) -> str:
        """Take the folder. Returns a note if one was left by a training that is gone.

        Raises:
            WorkDirInUseError: it belongs to another process.
            OSError: the file cannot be written.
        """
        other = self._read()
        if other is not None:
            if self._lives(other):
                raise self._in_use(other)
            self._remove(other)
        self._create()
        _taken.add((self.owner['pid'], self.owner['token']))
        atexit.register(self.release)
        threading.Thread(target=self._keep_alive, daemon=True).start()
        if other is None:
            return ''
        return f'{self.path} was left by a training that is gone (process {other.get("pid")} on {other.get("host")})'

    def release(self) -> None:
        """Give the folder back; no-op in a process that was forked, and after another took it."""
        atexit.unregister(self.release)
        self._released.set()
        if os.getpid() == self.owner['pid'] and (self._read() or {}).get('token') == self.owner['token']:
            self.path.unlink(missing_ok=True)

    def _create(self) -> None:
        """Write the file as a whole, unless there is one: of several who try at once, one succeeds."""
        try:
            self._own.write_text(json.dumps(self.owner, indent=1))
            os.link(self._own, self.path)
        except FileExistsError:
            raise self._in_use(self._read() or {}) from None
        finally:
            self._own.unlink(missing_ok=True)

    def _remove(self, stale: dict) -> None:
        """Remove the file of a training that is gone, and no other: another may have taken the folder meanwhile."""
        try:
            os.rename(self.path, self._own)  # of several who try at once, one succeeds
        except FileNotFoundError:
            return
        try:
            found = _content(self._own)
            if found != stale:
                with suppress(FileExistsError):
                    os.link(self._own, self.path)
                raise self._in_use(found or {})
        finally:
            self._own.unlink(missing_ok=True)

    def _in_use(self, other: dict) -> WorkDirInUseError:
        return WorkDirInUseError(
            f'{self.path.parent} is in use by another training (process {other.get("pid")} on {other.get("host")}, '
            f'since {other.get("since")}): end that one, or take another --work-dir'
        )

    def _read(self) -> dict | None:
        return _content(self.path)

    def _lives(self, other: dict) -> bool:
        if not other or other.get('folder') != self.owner['folder']:  # of the folder that this one is a copy of
            return False
        if (os.getpid(), other.get('token')) in _taken:
            return False  # left by an error in a training before, in this very process
        if all(other.get(key) == self.owner[key] for key in ('host', 'boot', 'namespace')):
            try:
                return abs(psutil.Process(other['pid']).create_time() - other['started']) < 2  # else a later process
            except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
                return False
            except psutil.AccessDenied:
                return True
        before = self._touched()
        for _ in range(self.patience):
            self.sleep(self.beat)
            if self._touched() != before:
                return True
        return False

    def _touched(self) -> tuple[int, str]:
        """When the file was touched last, and by whom. It is opened: network file systems look at it anew then."""
        try:
            with open(self.path) as file:
                return os.fstat(file.fileno()).st_mtime_ns, file.read()
        except OSError:
            return 0, ''

    def _keep_alive(self) -> None:
        while not self._released.wait(self.beat):
            with suppress(OSError):
                os.utime(self.path)


def _content(path: Path) -> dict | None:
    """What is in the file; an empty dict if that is no lock, None without a file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _this_process() -> dict:
    def content(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return ''

    try:
        namespace = os.readlink('/proc/self/ns/pid')  # process numbers of another container mean nothing here
    except OSError:
        namespace = ''
    return dict(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        since=time.strftime('%Y-%m-%d %H:%M:%S'),
        boot=content('/proc/sys/kernel/random/boot_id'),
        namespace=namespace,
    )
