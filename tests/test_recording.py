"""Operators recorded once and called again: what optimize_for_inference does with sizes that come again."""

import pytest
import torch
from torch import Tensor

from mmdet_ddetr.inference.recording import NotRecordable, Programs, Recorder


def recorded(function, x: Tensor):
    with Recorder(x) as recorder:
        result = function(x)
    return recorder.program(result)


def test_program():
    """In place, through views, with constants, several outputs and parts that nobody reads."""
    weight = torch.arange(6.0).view(3, 2)
    calls = []

    def function(x):  # [2, 2]
        calls.append(x)
        table = torch.cat([weight, weight.square()]).sum(1)  # a constant
        y = torch.empty_like(x)
        y[:, :1] = x[:, 1:] * table[1]
        y[:, 1:].copy_(x[:, :1])
        y.add_(weight[:2]).detach().relu_()
        best, index = y.flatten().topk(3)
        x.exp().sum()
        return [dict(best=best, index=index, parts=y.split(1))]

    x, other = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([[-5.0, 1.0], [0.5, 7.0]])
    program = recorded(function, x)
    (found,), (expected,) = program(other), function(other)
    assert len(calls) == 2
    for name in ('best', 'index'):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(found['parts']), torch.cat(expected['parts']), rtol=0, atol=0)
    code = program.func.__self__.code
    assert 'square' not in code and 'exp' not in code
    first = program(x)[0]['best'].clone()
    assert program(other)[0]['best'].data_ptr() != program(x)[0]['best'].data_ptr()
    torch.testing.assert_close(program(x)[0]['best'], first, rtol=0, atol=0)


@pytest.mark.parametrize(
    'function',
    [
        lambda x: x * x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.zeros(2, 2).copy_(x),  # the same memory in every call, otherwise
        lambda x: torch.add(x, 1, out=torch.empty(2, 2)),
    ],
)
def test_what_is_not_recorded(function):
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    with pytest.raises(NotRecordable):
        recorded(function, x)
    programs = Programs(1)
    for factor in range(1, 6):
        torch.testing.assert_close(programs('key', function, factor * x), function(factor * x))
    assert programs.found == {'key': None}


def test_programs_are_of_what_comes_again():
    programs, calls = Programs(2), []

    def function(x):
        calls.append(x)
        return x + 1

    for key in 'aabacaabcca':  # a is recorded at its third call; the last c puts it out
        assert programs(key, function, torch.ones(1)).item() == 2
    assert {key: callable(found) for key, found in programs.found.items()} == dict(c=False, a=False)
    assert len(calls) == 9
