"""Dense attention with dropout: the share that is dropped, the gradients, and what is kept for them."""

import pytest
import torch
from test_frozen_norm import kept

from mmdet_ddetr.layers import DotProductAttention
from mmdet_ddetr.ops import dropout_matmul


def test_dropout_matmul_is_dropout_and_a_product():
    """Of an identity, it shows what was dropped; the same seed drops the same, also in the backward pass."""
    weights = torch.eye(64).expand(2, 3, 64, 64).double().requires_grad_()
    value = torch.rand(2, 3, 64, 5, dtype=torch.float64).requires_grad_()
    torch.manual_seed(1)
    output = dropout_matmul(weights, value, 0.25)
    rows = (output / value).detach()
    assert ((rows == 0) | ((rows - 4 / 3).abs() < 1e-9)).all()
    dropped = rows[..., 0] == 0
    assert 0.15 < dropped.double().mean() < 0.35
    output.sum().backward()
    scale = ~dropped * value.new_tensor(4 / 3).detach()
    torch.testing.assert_close(value.grad, scale[..., None].expand_as(value))
    on_diagonal = weights.grad.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(on_diagonal, scale * value.detach().sum(-1))
    torch.manual_seed(1)
    assert torch.equal(dropout_matmul(weights, value, 0.25), output)
    assert torch.equal(dropout_matmul(weights, value, 0.0), weights @ value)


def test_gradients():
    weights, value = torch.rand(2, 7, 9, dtype=torch.float64), torch.randn(2, 9, 4, dtype=torch.float64)

    def product(weights, value):
        torch.manual_seed(0)
        return dropout_matmul(weights, value, 0.3)

    inputs = weights.requires_grad_(), value.requires_grad_()
    assert torch.autograd.gradcheck(product, inputs) and torch.autograd.gradgradcheck(product, inputs)


def inputs_of(shared=False):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 30, 16), torch.randn(2, 40, 8 if shared else 16), torch.randn(2, 40, 16)
    padding = torch.zeros(2, 40, dtype=torch.bool)
    padding[1, 31:] = True
    return [x.requires_grad_() for x in (query, key, value)], padding


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('shared', [False, True])
def test_mean_over_many_is_attention_without_dropout(shared, bias):
    (query, key, value), padding = inputs_of(shared)
    bias = torch.randn(2, 2, 30, 40) if bias else None
    attention = DotProductAttention(2, dropout=0.2)
    expected = attention.eval()(query, key, value, padding, bias=bias)
    with torch.no_grad():
        attention.train()
        mean = sum(attention(query, key, value, padding, bias=bias) for _ in range(2000)) / 2000
    assert (
        (mean - expected).abs().max() < 0.1 < (attention(query, key, value, padding, bias=bias) - expected).abs().max()
    )


def test_autocast_of_wide_inputs():
    """Products are narrow in both passes; gradients have their inputs' dtype."""
    inputs, padding = inputs_of()
    attention = DotProductAttention(2, dropout=0.2).train()
    for dtype in (torch.bfloat16, torch.float64):  # fp64 stays
        wide = [x.to(torch.promote_types(x.dtype, dtype)) for x in inputs]
        with torch.autocast('cpu', torch.bfloat16):
            output = attention(*wide, padding)
        assert output.dtype == dtype
        for x, grad in zip(inputs, torch.autograd.grad(output.float().sum(), inputs)):
            assert grad.dtype == x.dtype and grad.isfinite().all()


def test_masked_keys_get_nothing():
    (query, key, value), padding = inputs_of()
    not_seen = torch.zeros(30, 40, dtype=torch.bool)
    not_seen[:, :5] = True
    DotProductAttention(2, dropout=0.2).train()(query, key, value, padding, not_seen).sum().backward()
    assert not value.grad[:, :5].any() and not value.grad[1, 31:].any() and value.grad[0, 5:].any(-1).all()


def test_what_is_kept():
    """The weights once, beside queries, keys and values: PyTorch's keeps them three times."""
    (query, key, value), _ = inputs_of()
    weights = 2 * 2 * 30 * 40 * 4
    _, ours = kept(lambda: DotProductAttention(2, dropout=0.2).train()(query, key, value))
    inputs = 4 * sum(x.numel() for x in (query, key, value))
    assert ours <= weights + 2 * inputs + 100
