"""Row-column decoupled attention against loops, against dense attention, and its memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdet_ddetr.layers import RCDA, RowColumnProduct, row_column_product

M, D = 2, 3
C = M * D


def rectangle(H, W, sizes):  # -> [B, H*W], True = padding
    mask = torch.ones(len(sizes), H, W, dtype=torch.bool)
    for image, (h, w) in zip(mask, sizes):
        image[:h, :w] = False
    return mask.flatten(1)


def attention(**settings):
    torch.manual_seed(0)
    module = RCDA(C, M, **settings).double()
    torch.nn.init.normal_(module.in_proj_bias)
    return module


@pytest.mark.parametrize(('shape', 'seen'), [((3, 4), (2, 3)), ((5, 2), (5, 1)), ((3, 3), (3, 3))])
@pytest.mark.parametrize('mean_over_padding', [False, True])
def test_cross_attention_against_loops(shape, seen, mean_over_padding):
    """Of the second image, whose upper left (h, w) is no padding."""
    (H, W), (h, w) = shape, seen
    module = attention(mean_over_padding=mean_over_padding)
    query, pos_x, pos_y = torch.randn(3, 2, 4, C, dtype=torch.float64)
    key = torch.randn(2, H, W, C, dtype=torch.float64)
    key_pos_x, key_pos_y = (torch.randn(2, n, C, dtype=torch.float64) for n in (W, H))
    mask = rectangle(H, W, [(H, W), seen])
    result = module(
        query,
        key=key.flatten(1, 2),
        value=key.flatten(1, 2),
        query_pos_x=pos_x,
        query_pos_y=pos_y,
        key_pos_x=key_pos_x,
        key_pos_y=key_pos_y,
        key_padding_mask=mask if seen != shape else None,
        spatial_shapes=[shape],
    )[1]
    weights, biases = module.in_proj_weight.chunk(5), module.in_proj_bias.chunk(5)

    def project(i, vector):
        return weights[i] @ vector + biases[i]

    rows, columns = (H, W) if mean_over_padding else (h, w)  # that count in the means
    keys_x = [project(2, sum(key[1, j, i] for j in range(rows)) / rows + key_pos_x[1, i]) for i in range(w)]
    keys_y = [project(3, sum(key[1, j, i] for i in range(columns)) / columns + key_pos_y[1, j]) for j in range(h)]
    expected = torch.zeros(4, C, dtype=torch.float64)
    for q in range(4):
        query_x, query_y = project(0, query[1, q] + pos_x[1, q]), project(1, query[1, q] + pos_y[1, q])
        for head in (slice(0, D), slice(D, C)):
            a_x = torch.stack([query_x[head] @ k[head] / D**0.5 for k in keys_x]).softmax(0)
            a_y = torch.stack([query_y[head] @ k[head] / D**0.5 for k in keys_y]).softmax(0)
            for j in range(h):
                for i in range(w):
                    expected[q, head] += a_y[j] * a_x[i] * project(4, key[1, j, i])[head]
    torch.testing.assert_close(result, query[1] + module.out_proj(expected))


def test_self_attention_takes_the_positions_of_its_axes():
    """Each cell is a query at its own column and row."""
    module, (H, W) = attention(), (2, 3)
    cells = torch.randn(1, H * W, C, dtype=torch.float64)
    pos_x, pos_y = (torch.randn(1, n, C, dtype=torch.float64) for n in (W, H))
    by_axis = dict(key_pos_x=pos_x, key_pos_y=pos_y, spatial_shapes=[(H, W)])
    of_cells = [
        torch.stack([pos[0, i] for i in index])[None]
        for pos, index in ((pos_x, [0, 1, 2] * 2), (pos_y, [0] * 3 + [1] * 3))
    ]
    expected = module(cells, key=cells, query_pos_x=of_cells[0], query_pos_y=of_cells[1], **by_axis)
    torch.testing.assert_close(module(cells, **by_axis), expected)
    # positions of cells, as a DETR without axes has them, count for both axes
    position = torch.randn(1, H * W, C, dtype=torch.float64)
    torch.testing.assert_close(
        module(cells, query_pos=position, spatial_shapes=[(H, W)]),
        module(cells, key=cells, value=cells, query_pos=position, key_pos=position, spatial_shapes=[(H, W)]),
    )


def arguments(H, W, Q, channels=C, dtype=torch.float64):
    """Of the product, for two images, the second with padding."""
    torch.manual_seed(1)
    sizes = [(Q, channels), (Q, channels), (W, channels), (H, channels), (H, W, channels)]
    tensors = [torch.randn(2, *size, dtype=dtype, requires_grad=True) for size in sizes]
    padding = rectangle(H, W, [(H, W), (max(H - 2, 1), max(W - 1, 1))]).unflatten(1, (H, W))
    return tensors, (padding[:, 0], padding[:, :, 0])


@pytest.mark.parametrize(('H', 'W'), [(4, 7), (7, 4), (5, 5), (1, 6), (6, 1)])
@pytest.mark.parametrize('padded', [True, False])
def test_product_is_dense_attention(H, W, padded, monkeypatch):
    """Values and gradients, in several chunks, against the same by PyTorch alone."""
    monkeypatch.setattr(row_column_product, 'QUERIES_AT_LEAST', 1)
    tensors, padding = arguments(H, W, Q=37)
    padding = padding if padded else ()
    product = RowColumnProduct(M)
    got, expected = product(*tensors, *padding), product.dense(*tensors, *padding)
    torch.testing.assert_close(got, expected)
    grad = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(product(*tensors, *padding), expected)


class Largest(TorchDispatchMode):
    """The largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max(
            self.numel,
            *(
                x.untyped_storage().nbytes() // x.element_size()
                for x in tree_leaves(result)
                if isinstance(x, torch.Tensor)
            ),
            0,
        )
        return result


@pytest.mark.parametrize(('H', 'W'), [(40, 64), (64, 40)])
def test_memory_is_that_of_the_map(H, W):
    """Forward and backward, every cell a query. The paper's form would hold H*W * 40 * C numbers."""
    tensors, padding = arguments(H, W, H * W, channels=16, dtype=torch.float32)
    with Largest() as largest:
        RowColumnProduct(2)(*tensors, *padding).sum().backward()
    value = tensors[-1].numel()
    assert value <= largest.numel <= 4 * value


def test_other_heads_and_dropout():
    module = RCDA(12, 3, proj_drop=0.5).train()
    cells = torch.randn(2, 6, 12)
    assert module(cells, spatial_shapes=[(2, 3)]).shape == (2, 6, 12)
    dropped = module(cells, spatial_shapes=[(2, 3)]) == cells
    assert 0.2 < dropped.float().mean() < 0.8


def test_messages():
    with pytest.raises(ValueError, match='embed_dims must be divisible by num_heads, got embed_dims=10, num_heads=3'):
        RCDA(10, 3)
    with pytest.raises(ValueError, match='batch_first must be True'):
        RCDA(12, 3, batch_first=False)
    for shapes in (None, [(2, 3), (1, 2)]):
        with pytest.raises(ValueError, match=r'spatial_shapes must be the \(H, W\) of one feature map, got'):
            RCDA(12, 3)(torch.zeros(1, 6, 12), spatial_shapes=shapes)
