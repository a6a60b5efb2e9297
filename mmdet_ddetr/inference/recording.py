"""The operators of a computation, recorded once and called again without the Python that chose them."""

import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from mmdet_ddetr.ops._private import below_autograd

aten = torch.ops.aten


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
        self.memory_of_input = _memory(x)
        self.nodes = WeakTensorKeyDictionary({x: self.input})  # of all that depends on x
        self.wholes = WeakTensorKeyDictionary()  # view -> what an operator has computed
        self.views: dict[tuple, fx.Node] = {}  # by node of the whole, shape, strides, offset
        self.constants: dict[int, tuple[Tensor, fx.Node]] = {}  # by id

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        if all(x not in self.nodes for x in inputs):
            return func(*args, **kwargs)
        self._check(func, args, kwargs, inputs)
        for call in _bindings(func):
            try:
                output = call(*args, **kwargs)
                break
            except TypeError:  # it takes other arguments
                if call is func:
                    raise
        node = self.graph.call_function(call, *map_aggregate((args, kwargs), self._node))
        node.meta['writes'] = func._schema.is_mutable
        self._remember(output, node, None if func._schema.is_mutable else inputs[0])
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

    def _remember(self, output, node: fx.Node, source: Tensor | None) -> None:
        """Note that ``node`` gives ``output``, which may be a view of ``source``."""
        if isinstance(output, (list, tuple)):
            for index, part in enumerate(output):
                self._remember(part, self.graph.call_function(operator.getitem, (node, index)), source)
        elif isinstance(output, Tensor):
            self.nodes[output] = node if source is None else self._view(output, source, node)

    def _view(self, view: Tensor, source: Tensor, node: fx.Node) -> fx.Node:
        """``node`` where ``view`` is none of ``source``; of a view of a view, what views the whole, once for each view.

        Not of the input, which may begin anywhere in its memory.
        """
        if _memory(view) in (None, self.memory_of_input) or _memory(source) != _memory(view):
            return node
        if view.dtype != source.dtype:
            return node
        whole = self.wholes[view] = self.wholes.get(source, source)
        placed, placed_whole = ((tuple(x.shape), x.stride(), x.storage_offset()) for x in (view, whole))
        if placed == placed_whole:
            return self.nodes[whole]
        key = self.nodes[whole], *placed
        if key not in self.views:
            if whole is not source:
                node = self.graph.call_function(torch.as_strided, key)
            self.views[key] = node
        return self.views[key]

    def program(self, result: Any) -> Callable[[Tensor], Any]:
        """What gives, of another input, what ``result`` is of ``x``: tensors in lists and dicts."""
        self.graph.output(map_aggregate(result, self._node))
        self.graph.eliminate_dead_code(lambda node: node.op in ('placeholder', 'output') or node.meta.get('writes'))
        module = fx.GraphModule(torch.nn.Module(), self.graph)
        return partial(module.forward, *(value for value, _ in self.constants.values()))


def _bindings(func: OpOverload) -> Iterator[Callable]:
    """What calls an operator from Python, the fastest first: methods and functions begin 2 us sooner."""
    name = func._schema.name.removeprefix('aten::')
    method, function = (getattr(place, name, None) for place in (Tensor, torch))
    if isinstance(method, MethodDescriptorType) and func._schema.arguments[0].name == 'self':
        yield method
    if isinstance(function, BuiltinFunctionType):
        yield function
    yield func


def _memory(x: Tensor) -> int | None:
    """Where a tensor's memory begins; None: it has none of the usual kind."""
    return x.untyped_storage().data_ptr() or None if x.layout is torch.strided else None


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
