"""``num_cp`` of encoder and decoder: the same losses and gradients from fewer kept activations."""

import pytest
import torch
from tiny_model import CLASSES, tiny_model

from mmdet_ddetr.testing import make_batch


def kept_by(function):
    """What ``function()`` gives, and the bytes that it keeps for a backward pass."""
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return function(), sum(storages.values())


@pytest.mark.parametrize('variant', ['two-stage', 'detr'])
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
