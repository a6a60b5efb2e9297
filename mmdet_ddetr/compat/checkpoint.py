"""Let ``torch.load`` read what mmengine writes, and nothing more.

Since 2.6, ``torch.load`` builds only the types that it knows or was told of (``weights_only=True``). A checkpoint of
mmengine holds, beside tensors, its log: ``HistoryBuffer`` objects with numpy arrays, and references to their methods.
Each gets a stand-in here that takes what mmengine writes and refuses the rest, as numpy's own do as they are told: a
file could describe a dtype whose elements lie anywhere in memory, or are pointers. Whatever else a file asks for is
still refused; torch's error then names it, and who trusts the file can allow it with
``torch.serialization.safe_globals``.
"""

import re
from importlib import import_module
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer

_NUMBER = re.compile('b1|[iu][1248]|f[248]')  # numpy's names of the dtypes of a log
_PLAIN = (None, None, None, -1, -1, 0)  # no subarray, names, fields, size, alignment or flags of its own
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'


def allow_mmengine_checkpoints():
    """Add the types in mmengine's checkpoints, written under numpy 1 or 2, to torch's safe globals."""
    torch.serialization.add_safe_globals(
        [
            (_HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
            (_Array, 'numpy.ndarray'),
            (_Dtype, 'numpy.dtype'),
            *((_Array, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),  # numpy 1 and 2
            *((_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
            (_method_of, 'builtins.getattr'),
            (_ONE_CYCLE, _ONE_CYCLE),
        ]
    )


class _Dtype:
    """A number of 1 to 8 bytes."""

    def __init__(self, code, align=False, copy=True):
        if not (isinstance(code, str) and _NUMBER.fullmatch(code)):
            raise UnpicklingError(f'the checkpoint asks for a numpy.dtype of {code!r}, which mmengine does not write')
        self.code, self.order = code, '='

    def __setstate__(self, state):
        version, self.order, *rest = state
        if self.order not in ('<', '>', '|', '=') or tuple(rest) != _PLAIN:
            raise UnpicklingError(f'the checkpoint asks for a numpy.dtype of {state!r}, which mmengine does not write')

    def build(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array(np.ndarray):
    """An array of numbers, empty at first, which is saved as numpy's own again."""

    def __new__(cls, *args):
        return super().__new__(cls, 0, np.uint8)

    def __setstate__(self, state):
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, _build(dtype), is_fortran, data))

    def __reduce__(self):
        return np.asarray(self).__reduce__()

    def __reduce_ex__(self, protocol):
        return np.asarray(self).__reduce_ex__(protocol)


def _scalar(dtype, data) -> np.generic:
    dtype = _build(dtype)
    if len(data) != dtype.itemsize:
        raise UnpicklingError(f'the checkpoint has a numpy scalar of {dtype} in {len(data)} bytes')
    return np.frombuffer(data, dtype)[0]


def _build(dtype) -> np.dtype:
    if not isinstance(dtype, _Dtype):
        raise UnpicklingError(f'the checkpoint has a {type(dtype).__name__} for a numpy.dtype')
    return dtype.build()


class _HistoryBuffer(HistoryBuffer):
    """A log, which becomes mmengine's own once it has its numbers.

    mmengine's own would also take methods from the file, for the logs of the whole process.
    """

    def __setstate__(self, state):
        self.__init__(state['_log_history'], state['_count_history'], state['max_length'])
        self.__class__ = HistoryBuffer


_METHODS = {  # what mmengine stores by reference, through getattr
    _HistoryBuffer: {'min', 'max', 'current', 'mean'},
    _ONE_CYCLE: {'_annealing_cos', '_annealing_linear'},  # by name: importing mmengine.optim takes a second
}


def _method_of(owner, name):
    """``getattr`` for the methods that mmengine stores.

    The real one would undo the protection: by way of a function's module a file could reach any callable, and store it
    among the statistics that ``HistoryBuffer`` calls.
    """
    if not (isinstance(owner, (type, str)) and name in _METHODS.get(owner, ())):
        raise UnpicklingError(f'the checkpoint asks for attribute {name!r} of {owner!r}, which mmengine does not write')
    if isinstance(owner, str):
        module, owner = owner.rsplit('.', 1)
        owner = getattr(import_module(module), owner)
    return getattr(owner, name)
