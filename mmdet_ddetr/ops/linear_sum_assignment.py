"""Optimal assignment as an op: ``torch.compile`` sees one node in place of the copy to the host and scipy."""

from collections.abc import Sequence

import numpy as np
import scipy.optimize
import torch
from torch import Tensor


def assign(costs: Tensor, layers: Sequence[int], queries: Sequence[int], counts: Sequence[int]) -> Tensor:
    """The cheapest one-to-one assignment of targets and queries in each layer and image, with one copy to the host.

    Args:
        costs: [sum of L*T*Q] finite fp32 costs of one or more sets of predictions, each [L, T, Q] with the targets of
            all its images one after the other.
        layers: L of each set.
        queries: Q of each set.
        counts: targets in each image of the first set, in each of the second, ...; those of a set sum to T.

    Returns:
        [4, N] layer, image, query and target (in T) of each matched pair, set by set and layer by layer; N is the sum
        of L * min(Q, count).

    Raises:
        ValueError: an argument does not fit the others, or a cost is not finite; it names the layer and the image.
    """
    _check(costs, layers, queries, counts)
    host = costs.cpu().numpy()
    pairs, start = [np.zeros((4, 0), np.int64)], 0
    for L, Q, images in zip(layers, queries, np.reshape(counts, (len(layers), -1)) if layers else ()):
        T = int(images.sum())
        if L * Q * T == 0:
            continue  # nothing to match, whatever L is
        cost = host[start : start + L * T * Q].reshape(L, T, Q)
        start += cost.size
        first = images.cumsum() - images
        for layer, image in np.ndindex(L, len(images)):
            block = cost[layer, first[image] : first[image] + images[image]]  # [count, Q]
            if not np.isfinite(block).all():
                raise ValueError(
                    f'matching cost is not finite in prediction layer {layer}, image {image} of the batch: '
                    f'{np.count_nonzero(~np.isfinite(block))} of {block.size} pairs; the logits or boxes of that '
                    f'layer are nan or inf, or a ground-truth box is'
                )
            target, query = scipy.optimize.linear_sum_assignment(block)
            where = np.full_like(query, layer), np.full_like(query, image)
            pairs.append(np.stack([*where, query, target + first[image]]))
    return torch.from_numpy(np.concatenate(pairs, 1)).to(costs.device, non_blocking=True)


def _fake(costs, layers, queries, counts):
    _check(costs, layers, queries, counts)
    sets = zip(layers, queries, _images(layers, counts))
    pairs = sum(L * sum(min(Q, count) for count in images) for L, Q, images in sets)
    return costs.new_empty((4, pairs), dtype=torch.int64)


def _images(layers, counts) -> list[Sequence[int]]:
    """The counts of each set."""
    B = len(counts) // max(len(layers), 1)
    return [counts[i * B : (i + 1) * B] for i in range(len(layers))]


def _check(costs, layers, queries, counts):
    if costs.dim() != 1 or costs.dtype != torch.float32 or costs.layout != torch.strided:
        raise ValueError(f'costs must be one row of fp32 numbers, got {costs.dtype}, {list(costs.shape)}')
    if len(queries) != len(layers) or (len(counts) % len(layers) if layers else counts):
        raise ValueError(
            'layers and queries must have a number for each set, and counts as many for one as for another, got '
            f'{len(layers)}, {len(queries)} and {len(counts)} numbers'
        )
    for name, numbers in (('layers', layers), ('queries', queries), ('counts', counts)):
        if any(number < 0 for number in numbers):
            raise ValueError(f'{name} must not be negative, got {list(numbers)}')
    expected = sum(L * Q * sum(images) for L, Q, images in zip(layers, queries, _images(layers, counts)))
    if costs.numel() != expected:
        raise ValueError(
            f'costs must hold L*T*Q numbers of each set, {expected} for layers {list(layers)}, queries {list(queries)} '
            f'and counts {list(counts)}, got {costs.numel()}'
        )


linear_sum_assignment = torch.library.custom_op('mmdet_ddetr::linear_sum_assignment', assign, mutates_args=())
linear_sum_assignment.register_fake(_fake)
