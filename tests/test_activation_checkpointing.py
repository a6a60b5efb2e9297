"""``num_cp`` of encoder and decoder: the same losses and gradients from fewer kept activations."""

import pytest
import torch
from kept import kept_by
from tiny_model import CLASSES, tiny_model

from mmdet_ddetr.testing import make_batch

OTHERS = ('smca-multi-scale', 'sam', 'dab-deformable', 'anchor')


@pytest.mark.parametrize(
    'variant', ['two-stage', 'detr', 'dab', *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_whole_model(variant):
    """Measured: the transformer and the losses keep 0.11 and 0.18 of the bytes."""
    inputs, samples = make_batch([(64, 96), (57, 64)], [3, 2], CLASSES)
    runs = []
    for num_cp in (-1, 2):
        model = tiny_model(variant, num_cp).train()
        _, below = kept_by(lambda model=model: model.extract_feat(inputs))
        losses, kept = kept_by(lambda model=model: model(inputs, samples, mode='loss'))
        sum(losses.values()).backward()
        runs.append((losses, {name: p.grad for name, p in model.named_parameters()}, kept - below))
    (expected, expected_grads, all_kept), (losses, grads, kept) = runs
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    torch.testing.assert_close(grads, expected_grads)
    assert kept < 0.5 * all_kept
