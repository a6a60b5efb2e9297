"""Whatever a training starts can be ended, and a training that is asked twice ends."""

import multiprocessing
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader, Dataset
from training_case import Do, fork, losses, make_config, train

from mmdet_ddetr.hooks import signal_handlers, signals
from mmdet_ddetr.hooks.signals import EXIT_CODE, _LeaveSignalsToParent


def refuse(number, frame):
    raise AssertionError('a handler of the training process')


def forked() -> int:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(child, signal.SIGTERM)  # at once: it may not even have begun
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run() -> int:
    child = subprocess.Popen(['sleep', '60'])
    child.terminate()
    return child.wait()


def process(method: str) -> int:
    child = multiprocessing.get_context(method).Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    return child.exitcode


def pool() -> int:
    with multiprocessing.get_context('fork').Pool(2) as workers:
        children = multiprocessing.active_children()
        workers.apply_async(time.sleep, (60,))
    assert all(child.exitcode is not None for child in children)  # some end by themselves
    return -signal.SIGTERM


WAYS = {
    'fork': forked,
    'subprocess': run,
    'fork process': lambda: process('fork'),
    'forkserver process': lambda: process('forkserver'),
    'pool': pool,
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('thread', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['', 'in a thread'])
def test_children_can_be_ended(way, thread):
    def parent():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal_handlers.install(number, refuse)
        for _ in range(5):
            if thread:
                with ThreadPoolExecutor(1) as executor:
                    code = executor.submit(WAYS[way]).result()
            else:
                code = WAYS[way]()
            assert code == -signal.SIGTERM, code
        assert signal.getsignal(signal.SIGTERM) is refuse
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])

    assert fork(parent) == 0


def test_child_has_the_handlers_of_before():
    """Also those of the user's own program, in a child of a child."""

    def before(number, frame):
        raise SystemExit(7)

    def child():
        assert signal.getsignal(signal.SIGTERM) is before
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if multiprocessing.current_process().name == 'child':
            assert fork(child) == 0

    def parent():
        signal.signal(signal.SIGTERM, before)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal_handlers.install(number, refuse)
        assert fork(child) == 0
        signal_handlers.restore()
        child()

    assert fork(parent) == 0


class Starting(Dataset):
    """Its samples come from other processes; the last tells whom a worker obeys."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        if i < 2:
            return (forked, run)[i]()
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        child = os.fork()
        if child == 0:
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        return 42


def test_workers_children_can_be_ended():
    """And the worker itself by its parent alone."""

    def parent():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal_handlers.install(number, refuse)
        init = _LeaveSignalsToParent(None)
        loader = DataLoader(Starting(), batch_size=None, num_workers=1, worker_init_fn=init, persistent_workers=True)
        assert list(loader) == [-signal.SIGTERM, -signal.SIGTERM, 42]
        (worker,) = loader._iterator._workers
        worker.terminate()
        worker.join(30)
        assert worker.exitcode == 0

    assert fork(parent) == 0


@pytest.mark.parametrize('first', [signal.SIGTERM, signal.SIGINT])
def test_second_sigterm_is_immediate(first, data, tmp_path):
    """By the signal itself, as if nobody had handled it."""

    def twice(runner):
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGTERM)

    assert fork(train, make_config(data, tmp_path), [Do('before_train_iter', 1, twice)]) == -signal.SIGTERM
    assert list(losses(tmp_path)) == [0]


def test_one_signal_by_two_ways(data, tmp_path):
    """timeout(1), torchrun and Slurm signal a process and its group, or each process and its launcher: it is one."""

    def twice(runner):
        me, number = os.getpid(), signal.SIGTERM
        signals.time = SimpleNamespace(sleep=lambda seconds: os.kill(me, number))  # while it waits for the other ways
        os.kill(me, number)

    assert fork(train, make_config(data, tmp_path), [Do('before_train_iter', 1, twice)]) == EXIT_CODE
    assert list(losses(tmp_path)) == [0, 1]


def test_a_checkpoint_that_is_being_written_is_finished(data, tmp_path):
    """Schedulers that ask again do not cost what they asked for."""

    def ask(runner):
        os.kill(os.getpid(), signal.SIGTERM)

    hooks = [Do('before_train_iter', 1, ask), Do('before_save_checkpoint', 1, ask)]
    assert fork(train, make_config(data, tmp_path), hooks) == EXIT_CODE
    assert (tmp_path / 'last_checkpoint').read_text().endswith('interrupted.pth')
    assert (tmp_path / 'interrupted.pth').is_file() and list(losses(tmp_path)) == [0, 1]
