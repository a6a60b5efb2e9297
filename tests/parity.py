"""When a detector of ours and one of mmdet's count as the same: batches, tolerances, comparisons."""

import copy

import pytest
import torch

NUM_CLASSES = 7
BATCHES = {
    'padded, one image empty': ([(128, 160), (96, 121)], [3, 0]),
    'not padded': ([(128, 160), (128, 160)], [2, 5]),
    'no box at all': ([(128, 160), (96, 128)], [0, 0]),
    'more boxes than queries': ([(128, 160), (90, 61)], [25, 3]),
}
# Every time: what is harder than a batch without padding.
QUICK_BATCHES = [pytest.param(name, marks=pytest.mark.slow) if name == 'not padded' else name for name in BATCHES]
# fp32 sums over some 10^4 terms in another order: measured 1e-6 on losses, 2e-6 on logits and boxes.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def losses_and_gradients(model, batch):
    """Of a training step; gradients by parameter name, None where there is none."""
    inputs, samples = batch
    model.train()
    model.zero_grad()
    losses = model.loss(inputs, copy.deepcopy(samples))
    sum(losses.values()).backward()
    return losses, gradients_of(model)


def gradients_of(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_losses(ours, theirs, names=None):
    """All losses of theirs, or those named; mmdet's are of shape [1] in part."""
    for name in theirs if names is None else names:
        torch.testing.assert_close(ours[name], theirs[name].squeeze(), **TOLERANCE, msg=lambda m, n=name: f'{n}: {m}')


def assert_same_gradients(ours, theirs, names=None):
    """All gradients of theirs, or those named."""
    largest = max(grad.norm() for grad in theirs.values() if grad is not None)
    for name in theirs if names is None else names:
        assert (theirs[name] is None) == (ours[name] is None), name
        if theirs[name] is not None:
            # one rounding in a ReLU's argument can switch one cell's gradient: compare norms, not cells
            assert (ours[name] - theirs[name]).norm() <= 1e-4 * theirs[name].norm() + 1e-6 * largest, name


def assert_same_raw_outputs(ours, theirs, batch):
    inputs, samples = batch
    with torch.no_grad():
        ours, theirs = (model.eval()(inputs, copy.deepcopy(samples), mode='tensor') for model in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def assert_same_detections(ours, theirs, batch, count, more_than, last_may_swap=False):
    """``count`` detections an image with the same scores; labels and boxes of those whose score is nobody else's.

    Args:
        more_than: there must be more such detections than this.
        last_may_swap: the score of the next one, not kept, may be that of the last.
    """
    inputs, samples = batch
    with torch.no_grad():
        ours, theirs = (model.eval()(inputs, copy.deepcopy(samples), mode='predict') for model in (ours, theirs))
    for a, b in zip((s.pred_instances for s in ours), (s.pred_instances for s in theirs), strict=True):
        assert len(a) == count
        torch.testing.assert_close(a.scores, b.scores, **TOLERANCE)
        apart = b.scores.diff().abs() > 1e-5
        sure = torch.cat([apart, apart.new_ones(1)]) & torch.cat([apart.new_ones(1), apart])
        if last_may_swap:
            sure[-1] = False
        assert sure.sum() > more_than
        assert torch.equal(a.labels[sure], b.labels[sure])
        torch.testing.assert_close(a.bboxes[sure], b.bboxes[sure], rtol=1e-5, atol=1e-3)


def without_gradient(model, batch):
    """Names of trained parameters that a training step does not move: of these, no comparison says anything."""
    _, gradients = losses_and_gradients(model, batch)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [name for name in trained if gradients[name] is None or not gradients[name].any()]
