"""The operators of a computation, recorded once and called again without the Python that chose them."""

import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from mmdet_ddetr.ops._private import below_autograd

aten = torch.ops.aten
SAME_TENSOR = aten.detach.default, aten.alias.default


class NotRecordable(Exception):
    """Which operators come next depends on numbers, not on sizes alone, or a constant would change."""


class Recorder(TorchDispatchMode):
    """While it is entered, notes every operator that depends on ``x``; what does not is a constant of the program.

    An operator whose output's size or value the host could ask for is refused. Numbers that the host reads in another
    way (``tolist``, ``numpy``) are not seen: they would be constants.
    """

    def __init__(self, x: Tensor):
        super().__init__()
        self.graph = fx.Graph()
        self.input = self.graph.placeholder('x')
        self.nodes = WeakTensorKeyDictionary({x: self.input})  # of all that depends on x
        self.constants: dict[int, tuple[Tensor, fx.Node]] = {}  # by id

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        if any(x in self.nodes for x in inputs):
            self._check(func, args, kwargs, inputs)
            if func in SAME_TENSOR or (func is aten.view.default and args[0].shape == output.shape):
                node = self._node(args[0])
            else:
                node = self.graph.call_function(func, *map_aggregate((args, kwargs), self._node))
            self._remember(output, node)
        return output

    def _check(self, func, args, kwargs, inputs: list[Tensor]) -> None:
        has_open_size = torch.Tag.dynamic_output_shape in func.tags
        if func is aten.index.Tensor:  # open with masks alone
            has_open_size = any(x.dtype in (torch.bool, torch.uint8) for x in inputs[1:])
        if has_open_size or torch.Tag.data_dependent_output in func.tags:
            raise NotRecordable(str(func))
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            if any(x not in self.nodes for x in _tensors(value)):
                raise NotRecordable(f'{func} writes into a constant')

    def _node(self, value):
        if not isinstance(value, Tensor):
            return value
        if value in self.nodes:
            return self.nodes[value]
        if id(value) not in self.constants:
            with self.graph.inserting_before(self.input):
                self.constants[id(value)] = value, self.graph.placeholder(f'constant_{len(self.constants)}')
        return self.constants[id(value)][1]

    def _remember(self, output, node: fx.Node) -> None:
        if isinstance(output, Tensor):
            self.nodes[output] = node
        elif isinstance(output, (list, tuple)):
            for index, part in enumerate(output):
                self._remember(part, self.graph.call_function(operator.getitem, (node, index)))

    def program(self, result: Any) -> Callable[[Tensor], Any]:
        """What gives, of another input, what ``result`` is of ``x``: tensors in lists and dicts."""
        self.graph.output(map_aggregate(result, self._node))
        self.graph.eliminate_dead_code()
        module = fx.GraphModule(torch.nn.Module(), self.graph)
        return partial(module.forward, *(value for value, _ in self.constants.values()))


def _tensors(arguments) -> list[Tensor]:
    found = []
    map_aggregate(arguments, lambda x: found.append(x) if isinstance(x, Tensor) else None)
    return found


class Programs:
    """Calls functions of one tensor, and records those that are called again and again.

    Args:
        kept: keys that are kept with their programs, those used last.
    """

    CALLS = 2  # with a key before it is recorded: by then, weights are packed for its size

    def __init__(self, kept: int):
        self.kept = kept
        self.found: OrderedDict[Hashable, int | Callable | None] = OrderedDict()  # calls, program; None: there is none

    def __call__(self, key: Hashable, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        """``function(x)``, which is the same function of numbers wherever the key is the same."""
        found = self.found.pop(key, 0)
        if callable(found):
            with below_autograd(), torch.autocast(x.device.type, enabled=False):
                result = found(x)
        elif found == self.CALLS:
            try:
                with Recorder(x) as recorder:
                    result = function(x)
                found = recorder.program(result)
            except NotRecordable:
                found, result = None, function(x)
        else:
            result, found = function(x), None if found is None else found + 1
        self.found[key] = found
        if len(self.found) > self.kept:
            self.found.popitem(last=False)
        return result
