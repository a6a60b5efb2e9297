"""The config inside a checkpoint of mmengine, read without running it.

It is Python source, and mmengine executes it: a checkpoint could run any program, though its pickle be harmless. What
its plain values may then build is told in ``apis/stored_model.py``.
"""

import ast
from collections.abc import Mapping

from .errors import CheckpointError


def find(checkpoint: Mapping) -> str | None:
    """The source of the config in a checkpoint, if there is one."""
    for names in (('message_hub', 'runtime_info', 'cfg'), ('meta', 'cfg')):
        found = checkpoint
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(found, str) and found:
            return found
    return None


def parse(source: str) -> dict:
    """Evaluate what mmengine writes: assignments of plain values and calls of ``dict``.

    Raises:
        CheckpointError: there is anything else in it.
    """
    config = {}
    try:
        for statement in ast.parse(source).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    config[name] = _value(value)
                case _:
                    raise ValueError(ast.unparse(statement))
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:  # the last: too deep to parse
        raise CheckpointError(
            f'the config in the checkpoint is refused, as it is more than plain values: {str(error)[:100]}'
        ) from None
    return config


def _value(node: ast.expr):
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=keywords) if all(k.arg for k in keywords):
            return {keyword.arg: _value(keyword.value) for keyword in keywords}
        case ast.Dict(keys=keys, values=values) if all(keys):
            return {_value(key): _value(value) for key, value in zip(keys, values)}
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Constant() | ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return ast.literal_eval(node)
        case _:
            raise ValueError(ast.unparse(node))
