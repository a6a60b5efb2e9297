"""The product of dense attention, with keys of each head and with keys that all heads share."""

import pytest
import torch

from mmdet_ddetr.layers import DotProductAttention

B, Q, S, M, D, E = 2, 3, 5, 4, 6, 2


@pytest.fixture
def tensors():
    sizes = dict(query=(B, Q, M * D), key=(B, S, D), value=(B, S, M * E), bias=(B, M, Q, S))
    return {name: torch.randn(size, dtype=torch.float64, requires_grad=True) for name, size in sizes.items()}


@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('masked', ['', 'padding', 'mask', 'padding and mask'])
def test_shared_keys(tensors, masked, with_bias):
    """As with a copy of the keys for each head: results and gradients."""
    masks = {}
    if 'padding' in masked:
        masks['key_padding_mask'] = torch.tensor([[False] * 4 + [True], [False] * 3 + [True] * 2])
    if 'and' in masked or masked == 'mask':
        masks['attn_mask'] = torch.eye(Q, S, dtype=torch.bool)
    query, key, value, bias = tensors.values()
    bias = bias if with_bias else None
    attention = DotProductAttention(M)
    shared = attention(query, key, value, bias=bias, **masks)
    copied = attention(query, key.repeat(1, 1, M), value, bias=bias, **masks)
    torch.testing.assert_close(shared, copied)
    inputs = [x for x in (query, key, value, bias) if x is not None]
    torch.testing.assert_close(
        torch.autograd.grad(shared.square().sum(), inputs), torch.autograd.grad(copied.square().sum(), inputs)
    )


def test_dropout_drops_weights_in_training_only(tensors):
    query, key, value, _ = tensors.values()
    attention = DotProductAttention(M, dropout=0.5)
    dropped = attention(query, key, value)
    assert not torch.equal(dropped, attention(query, key, value))
    torch.testing.assert_close(attention.eval()(query, key, value), DotProductAttention(M)(query, key, value))
