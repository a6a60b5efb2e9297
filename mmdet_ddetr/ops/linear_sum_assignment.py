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
        ValueError: if a cost is not finite; it names the layer and the image.
    """
    host = costs.cpu().numpy()
    pairs, start = [np.zeros((4, 0), np.int64)], 0
    for L, Q, images in zip(layers, queries, np.reshape(counts, (len(layers), -1))):
        T = images.sum()
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
    B = len(counts) // len(layers)
    images = [counts[i : i + B] for i in range(0, len(counts), B)]
    pairs = sum(L * sum(min(Q, count) for count in image) for L, Q, image in zip(layers, queries, images))
    return costs.new_empty((4, pairs), dtype=torch.int64)


linear_sum_assignment = torch.library.custom_op('mmdet_ddetr::linear_sum_assignment', assign, mutates_args=())
linear_sum_assignment.register_fake(_fake)
