"""torch.compile takes the whole train and predict forward as one graph: ``fullgraph=True`` raises at a break."""

import pytest
import torch
from tiny_model import CLASSES, NAMES, tiny_model

from mmdet_ddetr.testing import make_batch

OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != 'two-stage']


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def compile_whole(model, backend='eager'):
    return torch.compile(model, fullgraph=True, backend=backend)


def batch():
    return make_batch([(64, 96), (57, 64)], [3, 2], CLASSES)


def check_training(model, compiled, **tolerance):
    """Equal losses and gradients."""
    results = []
    for function in (model, compiled):
        model.zero_grad()
        inputs, samples = batch()
        torch.manual_seed(0)  # of denoising
        losses = function(inputs, samples, mode='loss')
        sum(losses.values()).backward()
        results.append((losses, [p.grad for p in model.parameters() if p.requires_grad]))
    (expected, expected_grads), (losses, grads) = results
    assert list(losses) == list(expected)
    torch.testing.assert_close(losses, expected, **tolerance)
    for grad, other in zip(grads, expected_grads, strict=True):
        assert (grad - other).norm() <= 1e-4 * other.norm() + 1e-5


def check_prediction(model, compiled, **tolerance):
    results = []
    for function in (model, compiled):
        inputs, samples = batch()
        with torch.no_grad():
            results.append([sample.pred_instances for sample in function(inputs, samples, mode='predict')])
    for expected, got in zip(*results):
        for name in ('scores', 'bboxes', 'labels'):
            torch.testing.assert_close(got[name], expected[name], **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['two-stage', *OTHERS])
def test_train_forward(variant):
    """From the images over matching and losses of all layers to the dict of losses."""
    model = tiny_model(variant).train()
    check_training(model, compile_whole(model), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['two-stage', 'anchor', 'dab'])
def test_train_forward_with_further_queries(variant):
    """Denoising queries, and one-to-many ones where the others have no patterns."""
    one2many = dict(num_queries_one2many=10, k_one2many=2) if variant == 'two-stage' else {}
    model = tiny_model(variant, dn_cfg=dict(group_cfg=dict(dynamic=False, num_groups=2)), **one2many).train()
    check_training(model, compile_whole(model), rtol=0, atol=0)


@pytest.mark.parametrize('variant', ['two-stage', *OTHERS])
def test_predict_forward(variant):
    """From the images to boxes in pixels of the original image in the data samples."""
    model = tiny_model(variant).eval()
    check_prediction(model, compile_whole(model), rtol=0, atol=0)


@pytest.mark.slow
def test_train_forward_with_checkpointing_and_autocast():
    model = tiny_model('two-stage', num_cp=2).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        check_training(model, compile_whole(model, 'aot_eager'), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['two-stage', 'detr'])
def test_inductor(variant):
    """Sums in another order: fp32's rounding, on the losses as in the parity tests."""
    model = tiny_model(variant)
    check_training(model.train(), compile_whole(model, 'inductor'), rtol=1e-4, atol=1e-4)
    check_prediction(model.eval(), compile_whole(model, 'inductor'), rtol=1e-3, atol=1e-2)
