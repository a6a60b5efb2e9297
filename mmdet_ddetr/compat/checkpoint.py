"""Let ``torch.load`` read what mmengine writes, and nothing more.

Since 2.6, ``torch.load`` builds only the types that it knows or was told of (``weights_only=True``). A checkpoint of
mmengine holds, beside tensors, its log: ``HistoryBuffer`` objects with numpy arrays, and references to their methods.
Whatever else a file asks for is still refused; torch's error then names it, and who trusts the file can allow it with
``torch.serialization.safe_globals``.
"""

from importlib import import_module
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer

_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
_METHODS = {  # what mmengine stores by reference, through getattr
    HistoryBuffer: {'min', 'max', 'current', 'mean'},
    _ONE_CYCLE: {'_annealing_cos', '_annealing_linear'},  # by name: importing mmengine.optim takes a second
}


def allow_mmengine_checkpoints():
    """Add the types in mmengine's checkpoints, written under numpy 1 or 2, to torch's safe globals."""
    array, scalar = np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]
    multiarray = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (array, scalar)
        for core in ('core', '_core')  # numpy 1 and 2
    ]
    dtypes = {type(np.dtype(code)) for code in '?' + np.typecodes['AllInteger'] + np.typecodes['Float']}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            *multiarray,
            *dtypes,
            (_method_of, 'builtins.getattr'),
            (_ONE_CYCLE, _ONE_CYCLE),
        ]
    )


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
