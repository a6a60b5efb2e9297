"""The product of row-column decoupled attention, in memory of the order of its value."""

import torch
from torch import Tensor, nn

from .dot_product_attention import DotProductAttention

QUERIES_AT_LEAST = 128  # of a chunk: fewer make matrix products too small


class RowColumnProduct(nn.Module):
    """For each of M heads, the sum of ``a_y[q, h] a_x[q, w] value[h, w]`` over a map, without parameters.

    ``a_x`` and ``a_y`` are the softmax over the columns and over the rows (Anchor DETR, arXiv:2109.07107, section 3.3).
    The longer axis is summed first, which leaves the smaller intermediate result, and so many queries at a time that it
    stays below a few times the value: O(H*W*C) in all, in training, too, where the backward pass computes it again. The
    paper's form holds Q * min(H, W) * C.

    Args:
        num_heads: heads M.
    """

    def __init__(self, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attention = DotProductAttention(num_heads)

    def forward(
        self,
        query_x: Tensor,  # [B, Q, C]
        query_y: Tensor,  # [B, Q, C]
        key_x: Tensor,  # [B, W, C]
        key_y: Tensor,  # [B, H, C]
        value: Tensor,  # [B, H, W, C]
        padding_x: Tensor | None = None,  # [B, W], True = padding
        padding_y: Tensor | None = None,  # [B, H], True = padding
    ) -> Tensor:  # [B, Q, C]
        if torch.compiler.is_exporting():  # for maps of any size: no order and no number of chunks fits all
            return self.dense(query_x, query_y, key_x, key_y, value, padding_x, padding_y)
        x, y = (query_x, key_x, padding_x), (query_y, key_y, padding_y)
        if value.shape[1] > value.shape[2]:  # sum over the longer axis first
            x, y, value = y, x, value.transpose(1, 2)
        B, H, W, C = value.shape
        M = self.num_heads
        values = value.unflatten(3, (M, C // M)).permute(0, 3, 2, 1, 4).reshape(B * M, W, H * (C // M))
        vectors = [self._of_heads(tensor.to(value.dtype)) for query, key, _ in (x, y) for tensor in (query, key)]
        masks = [None if padding is None else padding.repeat_interleave(M, 0)[:, None] for *_, padding in (x, y)]
        with_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*vectors, values))
        product = _Product.apply if with_grad else _product
        return product(*vectors, values, *masks).unflatten(0, (B, M)).transpose(1, 2).flatten(2)

    def _of_heads(self, x: Tensor) -> Tensor:  # [B, N, C] -> [B*M, N, D]
        return x.unflatten(2, (self.num_heads, x.shape[2] // self.num_heads)).transpose(1, 2).flatten(0, 1)

    def dense(
        self,
        query_x: Tensor,  # all as of ``forward``
        query_y: Tensor,
        key_x: Tensor,
        key_y: Tensor,
        value: Tensor,
        padding_x: Tensor | None = None,
        padding_y: Tensor | None = None,
    ) -> Tensor:  # [B, Q, C]
        """The same as attention to all cells: e^(x+y) = e^x e^y."""
        query, key, padding = self.joined(query_x, query_y, key_x, key_y, padding_x, padding_y)
        return self.attention(query, key, value.flatten(1, 2), padding)

    def joined(
        self,
        query_x: Tensor,  # all as of ``forward``
        query_y: Tensor,
        key_x: Tensor,
        key_y: Tensor,
        padding_x: Tensor | None = None,
        padding_y: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries [B, Q, 2C], keys [B, H*W, 2C] and padding [B, H*W] of ``attention``, both axes side by side."""
        query = self._beside(query_x, query_y) * 2**0.5  # the product divides by the root of twice the channels
        shape = -1, key_y.shape[1], key_x.shape[1], -1
        key = self._beside(key_x[:, None].expand(shape), key_y[:, :, None].expand(shape)).flatten(1, 2)
        padding = None if padding_x is None else (padding_x[:, None] | padding_y[:, :, None]).flatten(1)
        return query, key, padding

    def _beside(self, x: Tensor, y: Tensor) -> Tensor:  # [..., C] each -> [..., 2C], both of a head together
        heads = (vectors.unflatten(-1, (self.num_heads, -1)) for vectors in (x, y))
        return torch.cat(tuple(heads), -1).flatten(-2)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """[G, Q, D], [G, S, D], [G, 1, S] -> [G, Q, S]; the softmax in fp32 at least."""
    logits = torch.bmm(query, key.transpose(1, 2)) * int(query.shape[2]) ** -0.5  # traced, a size is a tensor
    if mask is not None:
        logits = logits.masked_fill(mask, float('-inf'))
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)


def _of_rows(weights_x: Tensor, value: Tensor, D: int) -> Tensor:
    """The sum over the columns of each row: [G, Q, W], [G, W, H*D] -> [G*Q, H, D]."""
    G, Q, _ = weights_x.shape
    return torch.bmm(weights_x, value).reshape(G * Q, value.shape[2] // D, D)


def _chunks(num_queries: int, num_rows: int, num_columns: int) -> list[slice]:
    size = max(2 * max(num_rows, num_columns), QUERIES_AT_LEAST)
    return [slice(start, start + size) for start in range(0, num_queries, size)]


def _product(
    query_x: Tensor,  # [G, Q, D], G = batch times heads
    key_x: Tensor,  # [G, W, D]
    query_y: Tensor,  # [G, Q, D]
    key_y: Tensor,  # [G, H, D]
    value: Tensor,  # [G, W, H*D]
    mask_x: Tensor | None,  # [G, 1, W], True = not seen
    mask_y: Tensor | None,  # [G, 1, H], True = not seen
) -> Tensor:  # [G, Q, D]
    G, Q, D = query_x.shape
    outputs = []
    for chunk in _chunks(Q, key_y.shape[1], key_x.shape[1]):
        weights_x = _weights(query_x[:, chunk], key_x, mask_x).to(value.dtype)
        weights_y = _weights(query_y[:, chunk], key_y, mask_y).to(value.dtype)
        output = torch.bmm(weights_y.flatten(0, 1)[:, None], _of_rows(weights_x, value, D))  # [G*chunk, 1, D]
        outputs.append(output.reshape(G, weights_x.shape[1], D))
    return torch.cat(outputs, 1)


class _Product(torch.autograd.Function):
    """``_product`` that keeps its arguments alone, which PyTorch's own gradient would not."""

    @staticmethod
    def forward(ctx, query_x, key_x, query_y, key_y, value, mask_x, mask_y):
        ctx.save_for_backward(query_x, key_x, query_y, key_y, value, mask_x, mask_y)
        return _product(query_x, key_x, query_y, key_y, value, mask_x, mask_y)

    @staticmethod
    def backward(ctx, grad_output):  # [G, Q, D]
        query_x, key_x, query_y, key_y, value, mask_x, mask_y = ctx.saved_tensors
        G, Q, D = query_x.shape
        wide = torch.promote_types(value.dtype, torch.float32)  # of sums over the chunks
        grad_key_x, grad_key_y, grad_value = (x.new_zeros(x.shape, dtype=wide) for x in (key_x, key_y, value))
        grad_queries_x, grad_queries_y = [], []
        for chunk in _chunks(Q, key_y.shape[1], key_x.shape[1]):
            weights_x = _weights(query_x[:, chunk], key_x, mask_x)
            weights_y = _weights(query_y[:, chunk], key_y, mask_y)
            grad = grad_output[:, chunk].reshape(-1, D, 1)  # [G*chunk, D, 1]
            of_rows = _of_rows(weights_x.to(value.dtype), value, D)
            grad_weights_y = torch.bmm(of_rows, grad).view(weights_y.shape)
            grad_of_rows = weights_y.to(value.dtype).view(len(grad), -1, 1) * grad.transpose(1, 2)  # [G*chunk, H, D]
            grad_of_rows = grad_of_rows.view(G, weights_x.shape[1], value.shape[2])
            grad_weights_x = torch.bmm(grad_of_rows, value.transpose(1, 2))
            grad_value += torch.bmm(weights_x.to(value.dtype).transpose(1, 2), grad_of_rows)
            for weights, grad_weights, query, key, grad_queries, grad_key in (
                (weights_x, grad_weights_x, query_x, key_x, grad_queries_x, grad_key_x),
                (weights_y, grad_weights_y, query_y, key_y, grad_queries_y, grad_key_y),
            ):
                product = weights * grad_weights
                grad_logits = product - weights * product.sum(-1, keepdim=True)
                grad_logits = (grad_logits * D**-0.5).to(key.dtype)
                grad_queries.append(torch.bmm(grad_logits, key))
                grad_key += torch.bmm(grad_logits.transpose(1, 2), query[:, chunk])
        grads = torch.cat(grad_queries_x, 1), grad_key_x, torch.cat(grad_queries_y, 1), grad_key_y, grad_value
        return *(grad.to(value.dtype) for grad in grads), None, None
